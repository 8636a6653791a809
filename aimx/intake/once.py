"""Idempotency keys: an agent's word that two submissions are one message.

`Idempotency-Key: "8e03978e-40d5-43dd-bc93-6894a57f9324"` (draft-ietf-httpapi-idempotency-key-header, in a mail's
header; the quotes may be left out). Within `[idempotency] keep` the same key with the same message is answered with the
first one's id and receipt, and with another message it is refused. Only agents have keys: to peers and strangers it is
a header like any other.
"""

import re
from hashlib import sha256

from aimx.intake.arrival import Arrival
from aimx.intake.envelope import Envelope, Octets, Reply
from aimx.intake.refusal import Refused
from aimx.message.header import HeaderBlock
from aimx.message.part import leaves
from aimx.store.contract import EventRow, Once, Store
from aimx.telemetry.context import Door
from aimx.tlog.receipt import Promise
from aimx.tlog.tree import leaf_hash

HEADER = "Idempotency-Key"
MAX_KEY = 200
TAKEN_APART = 192 * 1024
"""Octets of a body up to which it is compared by its decoded parts; a larger one by its octets as they came."""

# RFC 8941 §3.3.3 sf-string without escapes, or the bare token that people write.
_KEY = re.compile(rf"\"([!#-\[\]-~]{{1,{MAX_KEY}}})\"|([!#-\[\]-~]{{1,{MAX_KEY}}})")

REUSED = Reply(554, "5.7.1", f"{HEADER} was used for another message; take a new key, or send that message unchanged")
MALFORMED = Reply(550, "5.6.0", f"{HEADER} must be one field of 1 to {MAX_KEY} visible ASCII characters")


def promise(envelope: Envelope, arrival: Arrival, keep_s: float) -> Once | None:
    """What the agent promises, if it does. Raises Refused for a malformed key."""
    if envelope.door is not Door.AGENT or envelope.agent is None or arrival.told.trace_only is not False:
        return None
    key = _key(arrival.octets.header)
    if key is None:
        return None
    return Once(envelope.agent, key, _digest(envelope, arrival), arrival.now_ms + int(keep_s * 1000))


def _key(header: HeaderBlock) -> str | None:
    given = header.structured(HEADER)
    if not given:
        return None
    found = _KEY.fullmatch(given[0])
    if found is None or len(given) > 1:
        raise Refused(MALFORMED, "idempotency-key")
    return found[1] or found[2]


def _digest(envelope: Envelope, arrival: Arrival) -> bytes:
    """Of what a person would call the message. Sent again it has another Date, Message-ID and traceparent."""
    digest = sha256(b"aimx/once/v1")
    fields = [*sorted(address.encode() for address in set(envelope.recipients)), b"", arrival.told.subject.encode()]
    for field in (*fields, *_content(arrival.octets)):
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)
    return digest.digest()


def _content(octets: Octets) -> list[bytes]:
    """The decoded parts with their types: boundaries and transfer encodings may differ from try to try."""
    if not isinstance(octets.body, bytes) or len(octets.body) > TAKEN_APART:
        return [(octets.header.get("Content-Type") or "").encode(), octets.body_sha256]
    parts: list[bytes] = []
    for leaf in leaves(octets.header, octets.body):
        parts += [leaf.full_type.encode("utf-8", "replace"), (leaf.filename or "").encode("utf-8", "replace")]
        parts.append(leaf.data())
    return parts


async def acceptance(store: Store, eid: str) -> EventRow:
    """The event that a message was accepted by. It was committed with the message."""
    return next(event.row for event in await store.events_of(eid) if event.row.eid == eid)


def promised(origin: str, row: EventRow) -> Promise:
    """What the receipt of the first acceptance promised."""
    said = row.detail["open"]
    recipients = tuple(row.detail["recipients"])
    return Promise(
        origin, row.eid, leaf_hash(row.leaf), row.t_ms, bytes.fromhex(said["data"]), said["from"], recipients
    )
