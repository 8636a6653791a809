"""The client an agent holds: `async with aimx.connect() as me: await me.send("critic", {"draft": 1})`."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple, Self

from aimx.message.identifier import message_ids, new_eid
from aimx.sdk import letter, trace
from aimx.sdk.account import Account, find
from aimx.sdk.errors import AimxError, InvalidMessage, NoReply, Undelivered
from aimx.sdk.inbox import Inbox
from aimx.sdk.message import Message
from aimx.sdk.outbox import Handing, Outbox
from aimx.sdk.receipt import Receipt, of_reply
from aimx.tlog.errors import FormatError

_KEY = re.compile(r"[!#-\[\]-~]{1,200}")

_processed: ContextVar[Message | None] = ContextVar("aimx_processed", default=None)
"""The message that the running task processes: what it sends belongs to the same workflow."""


class Sent(NamedTuple):
    """An accepted message."""

    id: str
    """The node's id of it, from the 250."""
    message_id: str
    """With angle brackets."""
    trace_id: str
    """32 hex digits; `aimx trace` shows it."""
    receipt: Receipt | None
    """The node's signed promise that the message stands in the audit log: `verify()` it, `await confirm()` it."""


def connect(
    where: str | os.PathLike[str] | None = None,
    *,
    agent: str | None = None,
    password: str | None = None,
    ca: str | os.PathLike[str] | None = None,
) -> "AsyncClient":
    """A client for one agent at one node; use it as `async with aimx.connect(…) as me:`.

    `where` is an `aimx://` URL, a node's data folder or its ready file. Without it: AIMX_URL, then AIMX_DATA, then
    `./aimx-data`. `agent` and `password` default to AIMX_ADDRESS and AIMX_PASSWORD where a folder is given.
    Connections are opened when first used. Raises NotConfigured.
    """
    return AsyncClient(find(where, agent=agent, password=password, ca=ca))


class AsyncClient:
    """One agent's mail. All methods may be used by several tasks of one event loop at once."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._outbox = Outbox(account)
        self._inbox = Inbox(account, self._made)

    @property
    def address(self) -> str:
        return self.account.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave both connections in good order. Iterators of this client must have ended."""
        await asyncio.gather(self._inbox.close(), self._outbox.close())

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def send(
        self,
        to: str | Sequence[str],
        payload: object = None,
        *,
        subject: str | None = None,
        workflow: str | None = None,
        reply_to: Message | None = None,
        content_type: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        trace_only: bool = False,
        idempotency_key: str | None = None,
    ) -> Sent:
        """Send one message; returns when the node has it on disk.

        `to`: addresses, or bare names in this agent's domain. `payload`: a dict, list, number, … goes as JSON (or as
        `content_type` says, e.g. "application/msgpack"), a protobuf message as itself, str as plain text, bytes as
        they are. `workflow` and the trace are those of the message being processed, unless given. `reply_to` makes it
        an answer to that message. `priority`: -9 to 9, above 0 only for agents that may (RFC 6710). `message_id`:
        choose it yourself to find the message again after `Unconfirmed`. `trace_only`: a dry run. Nothing is delivered;
        a report of what would have been comes into this agent's inbox as an answer to the message, its payload a dict.

        `idempotency_key`: 1 to 200 visible ASCII characters. The same message (recipients, subject, content type,
        payload) sent again under it, by whichever process and for as long as the node keeps keys (24 hours), is
        accepted once and answered with the first id. Each call has one of its own, unless given, under which it sends
        again by itself when the connection is cut before the answer.

        Raises Refused, LoopRefused, KeyReused, SignInFailed, Unreachable, Unconfirmed; InvalidMessage and PayloadError
        (both also ValueError) for what cannot be said in a mail.
        """
        recipients = [self._full(address) for address in ([to] if isinstance(to, str) else to)]
        if not recipients:
            raise InvalidMessage("a message needs a recipient")
        if message_id is not None and message_ids(message_id) != [message_id]:
            raise InvalidMessage(f"{message_id!r} is no Message-ID; write <something@{self.account.domain}>")
        key, headers = _keyed(idempotency_key, headers or {})
        source = reply_to or _processed.get()
        workflow = workflow or (source.workflow if source else None)
        message_id = message_id or f"<{new_eid().lower()}@{self.account.domain}>"
        part = letter.encode(payload, content_type)
        about = trace.describe("send", "send", workflow=workflow, agent=self.account.name, size=len(part.data))
        about |= {"server.address": self.account.smtp.host, "server.port": self.account.smtp.port}
        with trace.sending(about) as (span, context):
            octets = letter.compose(
                part,
                sender=self.account.address,
                to=recipients,
                subject=subject if subject is not None else letter.subject(reply_to, workflow),
                message_id=message_id,
                context=context,
                workflow=workflow,
                answered=reply_to,
                headers={**headers, **({"X-Trace-Only": "yes"} if trace_only else {})},
            )
            trace_id = context.trace_id.hex()
            text = await self._outbox.send(Handing(recipients, octets, message_id, key, trace_id, priority))
            try:
                receipt = of_reply(text, octets, self.account.address, recipients, self.account)
            except FormatError:
                receipt = None
            if receipt is not None:
                span.set_attribute("messaging.message.id", receipt.eid)
        return Sent(receipt.eid if receipt else "", message_id, trace_id, receipt)

    async def reply(
        self,
        message: Message,
        payload: object = None,
        *,
        subject: str | None = None,
        workflow: str | None = None,
        content_type: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Sent:
        """Answer a message: to its sender, in its thread, workflow and trace, also outside of `process`."""
        if not message.reply_address:
            raise InvalidMessage("nobody is waiting for a reply: the message names no sender")
        with trace.continuing(message.context):
            return await self.send(
                message.reply_address,
                payload,
                subject=subject,
                workflow=workflow,
                reply_to=message,
                content_type=content_type,
                priority=priority,
                headers=headers,
                idempotency_key=idempotency_key,
            )

    async def request(
        self,
        to: str | Sequence[str],
        payload: object = None,
        *,
        timeout: float = 60.0,
        subject: str | None = None,
        workflow: str | None = None,
        reply_to: Message | None = None,
        content_type: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        trace_only: bool = False,
    ) -> Message:
        """Send, and wait up to `timeout` seconds for the reply, which is acknowledged and kept from `inbox`.

        The acknowledgement is under way when this returns; `close` waits for it. With `trace_only` the reply is the
        report of the dry run (see `send`).
        Raises NoReply; Undelivered when the node gives the request up; and what `send` raises.
        """
        message_id = f"<{new_eid().lower()}@{self.account.domain}>"
        async with self._inbox.reply_to(message_id) as future:
            await self.send(
                to,
                payload,
                subject=subject,
                workflow=workflow,
                reply_to=reply_to,
                content_type=content_type,
                priority=priority,
                headers=headers,
                message_id=message_id,
                trace_only=trace_only,
            )
            try:
                async with asyncio.timeout(timeout):
                    reply = await future
            except TimeoutError:
                raise NoReply(f"{to} did not reply within {timeout:g} s") from None
        reply.acknowledged = True
        self._inbox.settle(self._settle(reply))  # who asked need not wait until the node has written that down
        if reply.is_notice:
            said = f"the request to {to} could not be delivered: {letter.notice(reply)}"
            report = reply.report
            if report is None:
                raise Undelivered(said, reply)
            raise Undelivered(said, reply, status=report.status, trace_id=report.trace_id, event=report.event)
        return reply

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def inbox(self, *, follow: bool = True) -> AsyncGenerator[Message, None]:
        """`async for message in me.inbox():` every message not yet acknowledged, then each new one as it comes.

        With `follow=False` it ends when nothing is left that was there, instead of waiting for more.
        Waits in IDLE, never polls, and survives a restart of the node. A message that is not acknowledged is handed
        out again by the next `inbox()`. Several loops over one client share the mail.
        """
        return self._inbox.messages(follow=follow)

    async def ack(self, message: Message) -> None:
        """Mark the message done (`$AimxDone`). Doing it twice does no harm."""
        await self._settle(message)
        message.acknowledged = True

    async def _settle(self, message: Message) -> None:
        about = trace.describe("ack", "settle", workflow=message.workflow, agent=self.account.name)
        about |= {"messaging.message.id": message.id}
        with trace.acknowledging(message.context, about):
            await self._inbox.done(message.uid)

    @asynccontextmanager
    async def process(self, message: Message, *, ack: bool = True) -> AsyncGenerator[Message, None]:
        """Work on a message: what is sent inside stays in its trace and workflow.

        Leaving without an exception acknowledges it, unless `ack` is False or it already is; an exception leaves it
        unacknowledged, to be handed out again.
        """
        about = trace.describe("process", "process", workflow=message.workflow, agent=self.account.name)
        about |= {"messaging.message.id": message.id, "messaging.message.body.size": message.size}
        token = _processed.set(message)
        try:
            with trace.processing(message.context, message.delivery, about):
                yield message
                if ack and not message.acknowledged:
                    await self.ack(message)
        finally:
            _processed.reset(token)

    def _made(self, raw: bytes, uid: int) -> Message:
        return Message(raw, uid=uid, client=self)

    def _full(self, address: str) -> str:
        address = address.strip().lower()
        if any(char in address for char in "\r\n\0<> ") or not address:
            raise InvalidMessage(f"{address!r} is no address")
        return address if "@" in address else f"{address}@{self.account.domain}"


def _keyed(key: str | None, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The idempotency key, given as argument or header or made now, and the headers with it. Raises InvalidMessage."""
    given = {name.lower(): value for name, value in headers.items()}
    key = key or given.get("idempotency-key") or f"sdk-{new_eid().lower()}"
    if not _KEY.fullmatch(key):
        raise InvalidMessage(f"{key!r} is no idempotency key; give 1 to 200 visible ASCII characters")
    others = {name: value for name, value in headers.items() if name.lower() != "idempotency-key"}
    return key, {**others, "Idempotency-Key": key}


__all__ = ["AimxError", "AsyncClient", "Sent", "connect"]
