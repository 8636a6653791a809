"""Evidence for one message: its leaf, the openings, and a proof that anybody can check offline."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aimx.audit.anchors import Anchor
from aimx.audit.events import ACCEPTANCE, commitment, opened
from aimx.audit.log import NotCovered, Reader
from aimx.store.contract import NotFound, StoredEvent
from aimx.tlog import checkpoint, note, proof, tree
from aimx.tlog.checkpoint import Opened
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.leaf import committer
from aimx.tlog.note import Note, Signature, Verifier
from aimx.tlog.proof import Proof


class Events(Protocol):
    """The part of the Store contract this needs."""

    async def events_of(self, eid: str) -> list[StoredEvent]: ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """One event, proved. `opening` maps parts to plain values; empty when erased."""

    eid: str
    ev: str
    index: int
    leaf: bytes
    proof: str
    """C2SP tlog-proof, signed checkpoint included."""
    key: bytes | None
    trace_id: bytes
    span_id: bytes
    opening: dict[str, Any]

    def to_json(self) -> dict[str, object]:
        """What `GET /v1/audit/messages/{eid}/proof` and `aimx audit prove --json` give."""
        return {
            "eid": self.eid,
            "event": self.ev,
            "index": self.index,
            "leaf": self.leaf.decode(),
            "proof": self.proof,
            "opening": None
            if self.key is None
            else {
                "key": self.key.hex(),
                "trace": self.trace_id.hex(),
                "span": self.span_id.hex(),
                **self.opening,
            },
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Evidence":
        """Raises FormatError for anything `to_json` would not give."""
        try:
            given = dict(data["opening"] or {})
            key, trace_id, span_id = (bytes.fromhex(given.pop(name, "")) for name in ("key", "trace", "span"))
            return cls(
                str(data["eid"]),
                str(data["event"]),
                int(data["index"]),
                str(data["leaf"]).encode(),
                str(data["proof"]),
                key or None,
                trace_id,
                span_id,
                given,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError("not the evidence of an event") from error


Said = Callable[[str], Sequence[Anchor]]
"""What outsiders said of the log of an origin. Raises LogError."""


def nobody(origin: str) -> Sequence[Anchor]:
    """No outsider is asked: proofs end in the newest checkpoint."""
    return ()


async def message_proof(store: Events, reader: Reader, eid: str, said: Said = nobody) -> Evidence:
    """The proof of a message's acceptance, in a checkpoint that a witness has cosigned where `said` has one.

    Raises NotFound for a message that has none, and NotCovered while no signed checkpoint covers it: within a second or
    two of the 250 one will (`Sequencer.flush` waits for it).
    """
    stored = next((found for found in await store.events_of(eid) if found.row.ev in ACCEPTANCE), None)
    if stored is None:
        raise NotFound(f"no message {eid}")
    return await asyncio.to_thread(_prove, stored, reader, said)


async def event_proofs(store: Events, reader: Reader, eid: str, said: Said = nobody) -> list[Evidence]:
    """Proofs of everything that happened to one message, in order. Raises as `message_proof`."""
    events = await store.events_of(eid)
    if not events:
        raise NotFound(f"no message {eid}")
    return await asyncio.to_thread(lambda: [_prove(stored, reader, said) for stored in events])


def _prove(stored: StoredEvent, reader: Reader, said: Said) -> Evidence:
    row = stored.row
    place = reader.place_of(row.eid) if stored.index is None else stored.index
    if place is None:
        raise NotCovered(f"event {row.eid} is not in the log yet")
    shard, index = reader.at(place)
    found = (_cosigned(shard, index, said) or shard.prove(index)).text()
    opening = row.detail.get("open", {}) if row.key is not None else {}
    return Evidence(row.eid, row.ev, index, row.leaf, found, row.key, row.trace_id, row.span_id, opening)


def _cosigned(shard: Reader, index: int, said: Said) -> Proof | None:
    """A proof in the checkpoint over this leaf that most witnesses have cosigned, the newest of these; None: there is
    none. One that this log contradicts is no help here: the verification reports it.
    """
    notes: dict[str, dict[Signature, None]] = {}
    for anchor in said(shard.described().origin):
        if anchor.kind == "witness" and anchor.size > index:
            signed = note.parse(anchor.note)
            notes.setdefault(signed.text, {}).update(dict.fromkeys(signed.signatures))
    ranked = sorted(notes, key=lambda text: (len(notes[text]), checkpoint.parse(text).size), reverse=True)
    nodes = shard.node_reader()
    for text in ranked:
        found = checkpoint.parse(text)
        if found.size <= shard.state().size and tree.root_at(found.size, nodes) == found.root:
            path = tree.inclusion_proof(index, found.size, nodes)
            return Proof(index, tuple(path), str(Note(text, tuple(notes[text]))))
    return None


def check(evidence: Evidence, *logs: Verifier) -> Opened:
    """Check a proof offline, its openings included. `logs`: the log's keys; one must have signed. Raises FormatError or
    ProofError; returns the signed checkpoint."""
    found = proof.parse(evidence.proof)
    signed = proof.verify(found, evidence.leaf, logs)
    leaf = json.loads(evidence.leaf)
    if found.index != evidence.index or leaf.get("eid") != evidence.eid or leaf.get("ev") != evidence.ev:
        raise ProofError("the proof is of another event")
    if evidence.key is not None:
        commit = committer(evidence.key)
        values = {"trace": evidence.trace_id, "span": evidence.span_id}
        given = {**values, **{part: opened(part, value) for part, value in evidence.opening.items()}}
        for part, value in given.items():
            if commitment(commit, part, value) != leaf["c"].get(part):
                raise ProofError(f"the {part} given is not the one the leaf commits to")
    return signed
