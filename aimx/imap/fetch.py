"""FETCH: from the items asked for to what must be read, and from stored rows to responses.

A response comes in pieces: octets at hand, and `Slice`s of a stored body that the session reads and sends in parts, so
that no large body is ever held whole, nor the answers to hundreds of items that all name one large header.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from aimx.imap import mime, response
from aimx.imap.command import Body, Item, Section
from aimx.message.header import HeaderBlock
from aimx.store.contract import Row

PART = 256 * 1024
"""Octets of a body read at a time."""
INLINE = 64 * 1024
"""Bodies up to this size come with their row."""
APART = 16 * 1024
"""Octets from which interpreting is done on a thread: a header made to be slow must not hold up other sessions."""
MAX_HEADER = 1024 * 1024
"""Of a message inside, so much of its header is looked through for fields."""


class Slice(NamedTuple):
    """Octets `start`:`start + length` of a stored body."""

    eid: str
    start: int
    length: int


Piece = bytes | Slice
T = TypeVar("T")


class Bodies(Protocol):
    """The part of the store that reads bodies."""

    async def read_body(self, eid: str, start: int, length: int) -> bytes: ...


class Plan(NamedTuple):
    """What the items need of the store."""

    items: tuple[Item, ...]
    header: bool
    body: bool
    structure: bool
    content: bool
    r"""Somebody reads a message: to be witnessed."""
    sees: bool
    r"""Sets \Seen."""

    @property
    def batch(self) -> int:
        """Rows to ask for at once: of usual sizes at most about 2 MiB."""
        return 32 if self.body else 256 if self.header else 5000

    def size(self, row: Row) -> int:
        """Octets that come with a row."""
        return (row.header_size if self.header else 0) + (row.body_size if self.body and row.body_size <= INLINE else 0)


def plan(items: tuple[Item, ...]) -> Plan:
    bodies = [item for item in items if isinstance(item, Body)]
    structure = "BODY" in items or "BODYSTRUCTURE" in items or any(body.section.part for body in bodies)
    reads_body = structure or any(not body.section.what.startswith("HEADER") for body in bodies)
    header = reads_body or bool(bodies) or "ENVELOPE" in items
    sees = any(not body.peek for body in bodies)
    content = sees or any(body.section.what in ("", "TEXT") for body in bodies)
    return Plan(items, header, reads_body, structure, content, sees)


async def read_slice(store: Bodies, piece: Slice) -> AsyncIterator[bytes]:
    """The octets of a slice, in parts. Short when the message was erased meanwhile: padded, since its size is told."""
    start, left = piece.start, piece.length
    while left > 0:
        part = await store.read_body(piece.eid, start, min(PART, left))
        if not part:
            part = b" " * min(PART, left)
        yield part
        start += len(part)
        left -= len(part)


class Structures:
    """The structures of large messages seen lately, so that reading one part by part scans it once."""

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._known: OrderedDict[str, mime.Part] = OrderedDict()

    async def of(self, row: Row, store: Bodies) -> mime.Part:
        assert row.header is not None
        if row.body is not None:
            if len(row.header) + len(row.body) < APART:
                return mime.structure(row.header, row.body)
            return await asyncio.to_thread(mime.structure, row.header, row.body)
        known = self._known.get(row.eid)
        if known is None:
            scanner = mime.Scanner(row.header)
            async for part in read_slice(store, Slice(row.eid, 0, row.body_size)):
                await asyncio.to_thread(scanner.feed, part)
            known = self._known[row.eid] = scanner.finish()
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        self._known.move_to_end(row.eid)
        return known


async def respond(
    plan: Plan, number: int, row: Row, flags: frozenset[str], store: Bodies, structures: Structures
) -> AsyncIterator[Piece]:
    """`* number FETCH (…)` for one message; `flags` as this session shows them. An item is made when asked for."""
    root = await structures.of(row, store) if plan.structure else None
    blocks: _Blocks = {}
    before = b"* %d FETCH (" % number
    for item in plan.items:
        if isinstance(item, Body):
            for piece in _written(before, item, await _section(item.section, row, root, store, blocks)):
                yield piece
        elif item == "ENVELOPE":
            header = row.header or b""
            yield before + b"ENVELOPE " + await _apart(len(header), lambda: mime.envelope(_block(header)))  # noqa: B023
        else:
            yield before + _plain(item, row, flags, root)
        before = b" "
    yield b")\r\n"


_Blocks = dict[tuple[int, int], HeaderBlock]
"""The headers of one message that were looked through, by the offsets of their octets."""


def _block(header: bytes) -> HeaderBlock:
    return HeaderBlock.parse(header)[0]


async def _apart(size: int, work: Callable[[], T]) -> T:
    """Interpret so many octets, on a thread when they are many."""
    return work() if size < APART else await asyncio.to_thread(work)


def _plain(item: str, row: Row, flags: frozenset[str], root: mime.Part | None) -> bytes:
    match item:
        case "UID":
            return b"UID %d" % row.uid
        case "FLAGS":
            return b"FLAGS " + response.flags(flags)
        case "INTERNALDATE":
            return b"INTERNALDATE " + response.internal_date(row.internal_ms)
        case "RFC822.SIZE":
            return b"RFC822.SIZE %d" % (row.header_size + row.body_size)
        case _:
            assert root is not None
            return item.encode("ascii") + b" " + mime.body_structure(root, extended=item == "BODYSTRUCTURE")


def _written(before: bytes, item: Body, pieces: Sequence[Piece] | None) -> list[Piece]:
    """An item's label and its value, cut to what a partial fetch asked for; NIL for a part that is not there."""
    label = before + item.label
    if item.partial is not None:
        label += b"<%d>" % item.partial[0]
    if pieces is None:
        return [label + b" NIL"]
    if item.partial is not None:
        pieces = _cut(pieces, *item.partial)
    return [label + b" {%d}\r\n" % sum(map(_size, pieces)), *pieces]


def _size(piece: Piece) -> int:
    return piece.length if isinstance(piece, Slice) else len(piece)


def _cut(pieces: Sequence[Piece], start: int, count: int) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        size = _size(piece)
        low, high = min(start, size), min(start + count, size)
        if low < high:
            out.append(Slice(piece.eid, piece.start + low, high - low) if isinstance(piece, Slice) else piece[low:high])
        start, count = start - low, count - (high - low)
    return out


async def _section(
    section: Section, row: Row, root: mime.Part | None, store: Bodies, blocks: _Blocks
) -> list[Piece] | None:
    """RFC 3501 §6.4.5. None for what the message does not have."""
    header_size, size = row.header_size, row.header_size + row.body_size
    message: mime.Part | None = None
    if section.part:
        assert root is not None
        part = mime.locate(root, section.part)
        if part is None:
            return None
        if section.what == "":
            return _range(row, part.start, part.end)
        if section.what == "MIME":
            return _range(row, part.head, part.start)
        message = part.embedded
        if message is None:
            return None
    head, start, end = (message.head, message.start, message.end) if message else (0, header_size, size)
    match section.what:
        case "":
            return _range(row, 0, size)
        case "HEADER":
            return _range(row, head, start)
        case "TEXT":
            return _range(row, start, end)
        case _:
            end = min(start, head + MAX_HEADER)
            if (head, end) not in blocks:
                octets = await _joined(_range(row, head, end), store)
                blocks[head, end] = await _apart(len(octets), lambda: _block(octets))
            block = blocks[head, end]
            return [await _apart(end - head, lambda: _fields(block, section))]


def _range(row: Row, low: int, high: int) -> list[Piece]:
    """Octets of the whole message: its header is at hand, its body perhaps."""
    assert row.header is not None
    edge = row.header_size
    out: list[Piece] = []
    if low < edge:
        out.append(row.header[low : min(high, edge)])
    start, end = max(low, edge) - edge, high - edge
    if start < end:
        out.append(Slice(row.eid, start, end - start) if row.body is None else row.body[start:end])
    return out


async def _joined(pieces: Sequence[Piece], store: Bodies) -> bytes:
    out: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, Slice):
            out += [part async for part in read_slice(store, piece)]
        else:
            out.append(piece)
    return b"".join(out)


def _fields(block: HeaderBlock, section: Section) -> bytes:
    """The header fields asked for, or all others, with the empty line that ends every header."""
    wanted = {name.lower() for name in section.fields}
    inverse = section.what == "HEADER.FIELDS.NOT"
    kept = b"".join(field.raw for field in block.fields if (field.name in wanted) != inverse)
    if kept and not kept.endswith(b"\n"):
        kept += b"\r\n"
    return kept + b"\r\n"
