"""The mailbox transport: the attempt and what became of it are one commit."""

from aimx.delivery import attempt, trace
from aimx.delivery.transport import DELIVERED, Later, Never, Result
from aimx.store.contract import Due, EventRow, Placed, Store, Tried
from aimx.telemetry.span import Span


class MailboxTransport:
    """Puts a message into an agent's INBOX, unless the agent is busy, over quota or gone."""

    name = "mailbox"

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node

    async def attempt(self, due: Due, span: Span, now_ms: int, final: bool) -> Result:
        this = attempt.Attempt.of(due, span, now_ms, final)
        rows: list[EventRow] = []

        def witness(found: Tried) -> list[EventRow]:
            rows[:] = [attempt.event(self._node, _with_end(this, found), found)]
            return rows

        outcome = await self._store.place(due, this.span, now_ms, witness)
        trace.end(span, _with_end(this, outcome), outcome, rows[0])
        if isinstance(outcome, Placed):
            return DELIVERED
        if outcome.reason == "no-mailbox":
            return Never(outcome.reason, "5.1.1", "there is no such agent any more")
        if outcome.reason == "quota":
            return Later(outcome.reason, "4.2.2", "the mailbox is full")
        return Later(outcome.reason, "4.2.1", "the agent has as many unacknowledged messages as it takes")


def _with_end(this: attempt.Attempt, outcome: Tried) -> attempt.Attempt:
    """Where nobody is any more, there is no next attempt to announce."""
    gone = not isinstance(outcome, Placed) and outcome.reason == "no-mailbox"
    return this._replace(next_ms=None) if gone else this
