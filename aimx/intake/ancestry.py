"""What a message may be looked up by, as far as its door lets it be believed (trace binding: which context).

Agents and peers name what they answer. From a stranger only a Message-ID counts that this node minted, or that an SDK
drew so that nobody can guess it, on a message that was sent *to that address*: who has never got such a message cannot
have read the id there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aimx.intake.envelope import Envelope
from aimx.intake.told import Told
from aimx.message import identifier
from aimx.telemetry.context import Context, Door


class Ask(NamedTuple):
    """The arguments of `Store.lineage`."""

    party: str
    """Whose mail the answered message must have been."""
    in_reply_to: str | None
    references: Sequence[str]
    trace_id: bytes | None
    workflow: str | None


NOTHING = Ask("", None, (), None, None)


def ask(envelope: Envelope, told: Told, hop: Context | None, key: bytes, serves: Callable[[str], bool]) -> Ask:
    """`hop`: the newest one a peer reports; `key`: of this node's Message-IDs; `serves`: whether an address is ours."""
    # A notice has no sender; it answers what its recipient has sent.
    party = envelope.agent or envelope.sender or envelope.recipients[0]
    if envelope.door is not Door.STRANGER:
        context = hop or (told.context if isinstance(told.context, Context) else None)
        return Ask(party, told.in_reply_to, told.references, context.trace_id if context else None, told.workflow)
    if envelope.sender and serves(envelope.sender):
        return NOTHING  # an agent of ours comes through the agents' door
    named = [told.in_reply_to or "", *told.references]
    ours = {id for id in named if identifier.unmint(id, key) or identifier.is_drawn(id, serves)}
    answered = told.in_reply_to if told.in_reply_to in ours else None
    return Ask(party, answered, [id for id in told.references if id in ours], None, None)
