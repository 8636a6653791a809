"""What a message looks like to the next server: headers that stay behind, and encodings that the server can take.

Outside the trust zone (trace binding) `AIMX-*` and `baggage` stay behind: they name hosts, rules and what agents told
each other. A peer gets them, with one more hop on top. `Return-Path` is written by whoever delivers last (RFC 5321
§4.4), and a Bcc is nobody's business (RFC 5322 §3.6.3).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from aimx.delivery.smtp_client import Extensions
from aimx.delivery.transport import Never, Parcel
from aimx.message.header import HeaderBlock
from aimx.message.transcode import MAX_LINE, MAX_SIZE, Untouchable, encode, longest_line
from aimx.telemetry.context import Context, Hop, hop_line, hops

PEER_LINE = 65_534
"""Octets of a line, without CRLF, that AIMX takes from another AIMX."""
_OFF_LOOP = 256 * 1024
"""A body of more octets is encoded on another thread."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A message as it goes out."""

    header: bytes
    size: int
    eight_bit: bool
    utf8: bool
    """The header or the envelope has octets above 127."""
    body: Callable[[], AsyncIterator[bytes]]

    async def octets(self) -> AsyncIterator[bytes]:
        yield self.header
        async for piece in self.body():
            yield piece


class Unfit(Exception):
    """The next server cannot take this message, and it may not be changed."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.result = Never(f"unfit.{status}", status, text)


def strip(header: HeaderBlock, *, trace: bool) -> None:
    """For strangers. `trace`: traceparent and tracestate may go."""
    kept_back = {b"return-path", b"bcc", b"baggage", b"delivered-to"} | (set() if trace else _TRACE)
    header.strip(lambda name: name in kept_back or name.startswith(b"aimx-"))


def add_hop(header: HeaderBlock, context: Context, by: str, rule: str) -> None:
    """For peers: `context` is that of the span under which they will go on."""
    ours = (b"return-path", b"bcc", b"delivered-to")
    header.strip(lambda name: name in ours or (name.startswith(b"aimx-") and name != b"aimx-trace"))
    number = max((hop.number for hop in hops(header)), default=0) + 1
    header.prepend([hop_line(Hop(number, context, by, rule))])


async def fit(parcel: Parcel, known: Extensions, *, peer: bool) -> Leaving:
    """The message as this server can take it. Raises Unfit."""
    speaks_utf8, limit = "SMTPUTF8" in known, PEER_LINE if peer else MAX_LINE
    international = not (parcel.due.sender.isascii() and parcel.address.isascii())
    if international and not speaks_utf8:  # RFC 6531 §3.5: there is no downgrade
        raise Unfit("5.6.7", "an address has characters beyond ASCII, and the next server does not take them")
    # A copy: what has to be said of the encoding for this server need not be for the next.
    header, size = HeaderBlock(list(parcel.header.fields), parcel.header.separator), parcel.record.body_size
    is_ascii, has_long = await _survey(parcel, limit)
    eight_bit = "8BITMIME" in known
    if not (is_ascii or eight_bit) or has_long:
        changed = await _encoded(parcel, header, eight_bit, limit)
        is_ascii, size = changed.isascii(), len(changed)

        async def body() -> AsyncIterator[bytes]:
            yield changed
    else:
        body = parcel.body
    block = header.to_bytes()
    if not header.separator:
        block += b"\r\n"
    if longest_line(block, limit):
        raise Unfit("5.6.0", f"a header line of it is longer than {limit} octets")
    utf8 = international or not block.isascii()
    if utf8 and not speaks_utf8:
        raise Unfit("5.6.9", "its header has characters beyond ASCII, and the next server does not take them")
    total = len(block) + size
    if known.size is not None and total > known.size:
        raise Unfit("5.3.4", f"it has {total} octets, and the next server takes {known.size}")  # RFC 1870 §6.1
    return Leaving(block, total, not is_ascii, utf8, body)


async def _survey(parcel: Parcel, limit: int) -> tuple[bool, bool]:
    """(all of the body is ASCII, it has a line over the limit)."""
    is_ascii, has_long, tail = True, False, b""
    async for piece in parcel.body():
        is_ascii = is_ascii and piece.isascii()
        if not has_long:
            joined = tail + piece
            has_long = longest_line(joined, limit)
            tail = joined[joined.rfind(b"\n") + 1 :]
    return is_ascii, has_long


async def _encoded(parcel: Parcel, header: HeaderBlock, eight_bit: bool, limit: int) -> bytes:
    if parcel.record.body_size > MAX_SIZE:
        raise Unfit("5.6.3", f"it would have to be encoded for the next server, and is over {MAX_SIZE} octets")
    octets = b"".join([piece async for piece in parcel.body()])

    def work() -> bytes:
        return encode(header, octets, eight_bit=eight_bit, limit=limit)

    try:
        return await asyncio.to_thread(work) if len(octets) > _OFF_LOOP else work()
    except Untouchable as error:
        raise Unfit("5.6.3", str(error)) from None


_TRACE = {b"traceparent", b"tracestate"}
