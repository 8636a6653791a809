"""What a stored message says, as JSON for people: its payload part, whatever codec it was written in."""

import asyncio

from aimx.message.header import HeaderBlock
from aimx.message.part import payload_leaf
from aimx.message.payload import MAX_SHOWN_BYTES, Descriptors, as_json, codec_of
from aimx.sidecar.models import Payload
from aimx.sidecar.visibility import clean
from aimx.store.contract import MessageRecord, Store

MAX_BODY = 2 * MAX_SHOWN_BYTES
"""Octets of a body that are read for it: base 64 makes the largest payload that is shown a third longer."""
_INLINE = 16 * 1024
"""Up to here a payload is decoded on the event loop; that takes less than handing it to a thread."""


async def read_payload(store: Store, record: MessageRecord) -> Payload:
    """Never fails for what the message holds; `note` says what could not be read."""
    if record.body_size > MAX_BODY:
        note = f"a body of {record.body_size} octets is too large to show; fetch the raw message"
        return Payload(content_type=record.content_type, size=record.body_size, value=None, note=note)
    header = await store.header(record.eid) or b""
    body = await store.read_body(record.eid, 0, record.body_size)
    schemas = await store.schemas() if b"proto" in header.lower() or b"multipart" in header.lower() else []
    sets = [descriptor_set for _, descriptor_set in schemas]
    if record.body_size <= _INLINE and not sets:
        return _read(header, body, sets)
    return await asyncio.to_thread(_read, header, body, sets)


def _read(header: bytes, body: bytes, sets: list[bytes]) -> Payload:
    leaf = payload_leaf(HeaderBlock.parse(header)[0], body)
    kind = clean(leaf.full_type)
    data = leaf.data()
    shown = as_json(kind, data, Descriptors(sets) if sets and codec_of(kind) == "protobuf" else None)
    return Payload(content_type=kind, size=len(data), value=clean(shown.value), note=shown.note)
