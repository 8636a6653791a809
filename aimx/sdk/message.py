"""A message as an agent holds it: read from raw octets once, its payload a Python object when asked for."""

import re
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aimx.message import payload as codec
from aimx.message.dsn import Report
from aimx.message.dsn import read as read_report
from aimx.message.header import HeaderBlock
from aimx.message.identifier import message_ids
from aimx.message.part import Leaf, payload_leaf
from aimx.telemetry.context import Context, hops, read

if TYPE_CHECKING:
    from aimx.sdk.client import AsyncClient, Sent

_ADDRESS = re.compile(r"<([^<>\s]+@[^<>\s]+)>|([^<>\s,;:\"()]+@[^<>\s,;:\"()]+)")
_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


class Message:
    """One received message. Everything but `uid` and `client` is read from `raw`."""

    def __init__(self, raw: bytes, *, uid: int = 0, client: "AsyncClient | None" = None) -> None:
        self.raw = raw
        """The octets as they lie in the mailbox."""
        self.uid = uid
        self._client = client
        self.headers, self._body_at = HeaderBlock.parse(raw)
        self.acknowledged = False

    def __repr__(self) -> str:
        return f"<aimx.Message {self.id or self.message_id} from {self.sender}>"

    @cached_property
    def id(self) -> str:
        """The id under which the node knows it (the one in the sender's 250); empty when no AIMX node stamped it."""
        value = (self.headers.get("AIMX-ID") or "").strip()
        return value if _ID.fullmatch(value) else ""

    @cached_property
    def message_id(self) -> str:
        """With angle brackets."""
        found = message_ids(self.headers.get("Message-ID"))
        return found[0] if found else ""

    @cached_property
    def in_reply_to(self) -> str | None:
        found = message_ids(self.headers.get("In-Reply-To"))
        return found[0] if found else None

    @cached_property
    def references(self) -> list[str]:
        """Oldest first."""
        return message_ids(self.headers.get("References"))

    @cached_property
    def sender(self) -> str:
        """Lower-cased address of From; empty for a notice of the node itself that has none."""
        match = _ADDRESS.search(self.headers.get("From") or "")
        return (match.group(1) or match.group(2)).lower() if match else ""

    @cached_property
    def reply_address(self) -> str:
        """Where a reply goes: Reply-To, else From."""
        match = _ADDRESS.search(self.headers.get("Reply-To") or "")
        return (match.group(1) or match.group(2)).lower() if match else self.sender

    @property
    def subject(self) -> str:
        return self.headers.get("Subject") or ""

    @property
    def workflow(self) -> str | None:
        return self.headers.get("X-Workflow-ID")

    @property
    def agent(self) -> str | None:
        """The agent that AIMX saw sign in and send this (X-Agent-ID, which only AIMX writes)."""
        return self.headers.get("X-Agent-ID")

    @cached_property
    def context(self) -> Context | None:
        """The creation context; None when the message carries none that is valid."""
        found = read(self.headers)
        return found if isinstance(found, Context) else None

    @property
    def trace_id(self) -> str:
        """32 hex digits; empty when there is no trace."""
        return self.context.trace_id.hex() if self.context else ""

    @cached_property
    def delivery(self) -> Context | None:
        """The hop that brought it, from the newest AIMX-Trace header."""
        found = hops(self.headers)
        return found[0].context if found else None

    @cached_property
    def is_notice(self) -> bool:
        """A delivery status notification (RFC 3464), not mail that somebody wrote."""
        kind = (self.headers.get("Content-Type") or "").lower()
        return kind.startswith("multipart/report") and "delivery-status" in kind

    @cached_property
    def report(self) -> Report | None:
        """What a delivery status notification says, for programs; None for other mail."""
        return read_report(self.headers, self.raw[self._body_at :]) if self.is_notice else None

    @property
    def size(self) -> int:
        """Octets of the body."""
        return len(self.raw) - self._body_at

    @cached_property
    def _leaf(self) -> Leaf:
        return payload_leaf(self.headers, self.raw[self._body_at :])

    @property
    def content_type(self) -> str:
        """Of the payload, with parameters."""
        return self._leaf.full_type

    @property
    def content(self) -> bytes:
        """The payload's octets, transfer encoding undone."""
        return self._leaf.data()

    @cached_property
    def payload(self) -> Any:
        """The payload as a Python object, by its content type.

        JSON and MessagePack as what they hold, Protocol Buffers as a message of the class this program has imported
        (a dict by field number when it has none), text as str, all else as bytes. Raises PayloadError.
        """
        return codec.decode(self.content_type, self.content)

    # ── what an agent does with it ───────────────────────────────────────────────────────────────────────────────────

    async def ack(self) -> None:
        """Say that it is done with: it is not handed out again and no longer counts against this agent's limit."""
        await self._owner.ack(self)

    async def reply(self, payload: object = None, **options: Any) -> "Sent":
        """Answer its sender, in the same thread, workflow and trace. Options as for `AsyncClient.send`."""
        return await self._owner.reply(self, payload, **options)

    def process(self, *, ack: bool = True) -> AbstractAsyncContextManager["Message"]:
        """Work on it: `async with message.process(): …`. See `AsyncClient.process`."""
        return self._owner.process(self, ack=ack)

    @property
    def _owner(self) -> "AsyncClient":
        if self._client is None:
            raise RuntimeError("this message was not received through a client")
        return self._client
