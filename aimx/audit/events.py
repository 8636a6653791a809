"""The event catalogue, and one pure builder for each event: plain values in, an `EventRow` with its final leaf out.

A leaf is canonical JSON (`aimx.tlog.leaf.canonical`), finished before the commit that it witnesses:

    v     "aimx.audit/1"
    ev    the event's name, from CATALOGUE
    t     Unix milliseconds
    eid   the event's own id, a ULID; for message.accepted and message.appended the message's id
    ref   the message's eid, when the event is about exactly one and is not its own acceptance
    node  the node's name
    c     commitments (base64): always `trace` and `span`, and what CATALOGUE says for the event
    …     the event's public fields, from CATALOGUE; none of them holds an address, a subject or content

Everything a person could be recognised by stands in `c` only, as a commitment under the row's key. The row's `key` and
`detail["open"]` open it and can be erased; `detail`'s other entries are facts for the timeline and erased with them.
Events about exactly one stored message are all under that message's key.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aimx.message.identifier import new_eid
from aimx.store.contract import EventRow, Hold, SpanRef
from aimx.tlog.leaf import canonical, committer, fold_values, new_key
from aimx.tlog.tile import MAX_ENTRY

VERSION = "aimx.audit/1"

FOLD_ABOVE = 256
"""A list of more values is committed to as one (`fold_values`), so that every leaf stays far below 65,535 octets."""


@dataclass(frozen=True, slots=True)
class EventKind:
    """One line of the catalogue. `fields` are public leaf fields, `commits` the parts under `c` besides trace, span."""

    doc: str
    fields: Mapping[str, str]
    commits: Mapping[str, str]


_BY = {"by": "who did it: an agent's address, `admin`, or `aimx`"}
_RCPT = {"rcpt": "the final recipient's address"}
_MESSAGES = {
    "by": _BY["by"],
    "box": "mailbox as `owner` SP `name`",
    "msgs": "eids of the messages, ascending by UID, joined by LF",
}
_MESSAGE = {
    "data": "SHA-256 of the DATA octets as received, dots undoubled",
    "hdr": "SHA-256 of the header block as stored, with the empty line that ends it",
    "body": "SHA-256 of the body as stored",
}
_N = {"n": "how many messages the command touched"}

CATALOGUE: Mapping[str, EventKind] = {
    "log.opened": EventKind(
        "first leaf of a log: whose it is and which keys speak for it",
        {
            "origin": "the log's name",
            "log": "verifier key of the log",
            "receipt": "verifier key of receipts",
            "prev": "last checkpoint of the log before it, or null",
            "start": "how many leaves the shards before it count",
            "why": "`first`, `period`, `size`, or `restored`: an old copy was put back and leaves after it are lost",
        },
        {},
    ),
    "log.closed": EventKind(
        "last leaf of a shard: where the log goes on, and under which key",
        {"origin": "the shard's name", "next": "name of the next shard", "log": "verifier key of the next shard"},
        {},
    ),
    "log.dropped": EventKind(
        "the oldest shard was dropped whole, its retention over",
        {"origin": "its name", "size": "leaves it held", "last": "its last checkpoint"},
        _BY,
    ),
    "message.accepted": EventKind(
        "a message was answered 250, or AIMX itself wrote it (a DSN)",
        {
            "size": "octets of DATA as received",
            "auth": "how the sender is known: `agent`, `network`, `peer`, `aimx`, `none`",
        },
        _MESSAGE
        | {
            "from": "envelope sender, empty for a DSN",
            "rcpt": "list: envelope recipients in order; one value folded from all when there are more than 256",
        },
    ),
    "message.appended": EventKind(
        "a message was put into a mailbox over IMAP APPEND",
        {"size": "octets as received"},
        _MESSAGE | {"by": _BY["by"], "box": _MESSAGES["box"]},
    ),
    "message.repeated": EventKind("an accepted message was sent again under its idempotency key", {}, _BY),
    "message.rejected": EventKind(
        "an authenticated agent's message was refused for good, or strangers' refusals in bulk",
        {"rc": "SMTP reply code", "st": "enhanced status code", "n": "how many refusals", "since": "ms of the first"},
        _BY | {"rcpt": "list of recipients, in order of mention; folded when more than 256"},
    ),
    "message.traced": EventKind(
        "an agent asked what would become of a message and was told; nothing was delivered",
        {"n": "how many recipients it named"},
        _BY | {"data": _MESSAGE["data"], "rcpt": "list of recipients; folded when more than 256"},
    ),
    "loop.refused": EventKind(
        "the loop guard refused a message",
        {"rule": "which rule: `depth`, `repeats`, `alternation`, `budget`, `deadline`", "count": "what it counted"},
        _BY | {"loop": "workflow, or trace in hex", "rcpt": "list of recipients; folded when more than 256"},
    ),
    "message.deferred": EventKind(
        "a delivery was tried and put off",
        {"why": "low-cardinality reason", "attempt": "its number, from 1", "next": "ms of the next, or null"},
        _RCPT,
    ),
    "message.bounced": EventKind(
        "a delivery was given up; `dsn` tells the sender",
        {"why": "low-cardinality reason", "attempt": "how many were made", "dsn": "eid of the DSN, or null"},
        _RCPT,
    ),
    "delivery.mailbox": EventKind(
        "a message was placed in a mailbox",
        {"attempt": "number of the attempt that did it", "uid": "its UID there"},
        _RCPT | {"box": _MESSAGES["box"]},
    ),
    **{
        ev: EventKind(
            doc,
            {"attempt": "number of the attempt that did it", "via": by, "code": "what the other side answered"},
            _RCPT | {"host": "who took it: a host's name"},
        )
        for ev, doc, by in (
            ("message.relayed", "another server took a message over", "relay or peer by name, or `mx`"),
            ("delivery.webhook", "a message was posted to a URL", "the webhook's name"),
            ("delivery.lmtp", "a mail store took a message by LMTP", "the store's name"),
        )
    },
    "mailbox.accessed": EventKind(
        "somebody looked into a mailbox or at a raw message",
        {"via": "`imap`, `http` or `cli`", "admin": "true when not as its owner"},
        _BY | {"box": _MESSAGES["box"]},
    ),
    "message.read": EventKind("contents were fetched by one command", _N, _MESSAGES),
    "message.flagged": EventKind(
        "flags were changed by one command",
        _N | {"op": "`add`, `remove` or `replace`", "ack": "true when it acknowledged"},
        _MESSAGES | {"flags": "the flags, sorted, joined by SP"},
    ),
    "message.copied": EventKind("messages were copied by one command", _N, _MESSAGES | {"to": _MESSAGES["box"]}),
    "message.moved": EventKind("messages were moved by one command", _N, _MESSAGES | {"to": _MESSAGES["box"]}),
    "message.expunged": EventKind("messages were removed from a mailbox by one command", _N, _MESSAGES),
    "message.erased": EventKind(
        "a message's content, openings and key were erased; `ref` names it",
        {"why": "low-cardinality reason", "leaf": "index of its acceptance in the log"},
        _BY,
    ),
    **{
        ev: EventKind(
            doc,
            {"kind": "`message`, `workflow` or `agent`"},
            _BY | {"subject": "what it covers: an eid, a workflow, an address", "why": "the reason that was given"},
        )
        for ev, doc in (
            ("hold.placed", "a legal hold was placed: what it covers cannot be erased"),
            ("hold.released", "a legal hold ended"),
        )
    },
    "queue.changed": EventKind(
        "somebody steered waiting deliveries by hand",
        {"what": "`retry`, `hold`, `release` or `drop`", "n": "how many deliveries"},
        _BY | {"msgs": "their messages' eids, one for each, joined by LF", "ids": "their numbers, joined by SP"},
    ),
    "config.changed": EventKind(
        "an agent, a schema, a rule or a setting was changed",
        {"what": "e.g. `agent.added`, `agent.disabled`, `agent.password`, `rules.reloaded`"},
        _BY | {"subject": "what was changed: an address, a schema's or a setting's name"},
    ),
    "data.mended": EventKind(
        "rows that contradicted each other were put right by `aimx verify-data --fix`",
        {"what": "which rule they broke", "n": "how many places"},
        _BY,
    ),
    "key.rotated": EventKind(
        "a key was replaced",
        {"what": "`log` or `receipt`", "old": "verifier key until now", "new": "verifier key from now on"},
        _BY,
    ),
    "login.refused": EventKind(
        "failed logins, in bulk",
        {"via": "`smtp`, `imap` or `http`", "n": "how many", "since": "ms of the first"},
        {"src": "peers' addresses, sorted, folded", "accounts": "the accounts tried, sorted, folded"},
    ),
    "anchor.recorded": EventKind(
        "a checkpoint is held outside: cosigned by a witness, mailed, or stamped with the time",
        {
            "kind": "`witness`, `mail` or `timestamp`",
            "size": "leaves under the checkpoint",
            "proof": "the cosignature (base64 of key id and signature); else SHA-256 of the mailed note or the stamp",
        },
        {"who": "the witness's or authority's name in the settings, or the mailbox's address"},
    ),
    "heartbeat": EventKind("nothing happened for a while and the log is alive", {"size": "leaves before it"}, {}),
}

ACCEPTANCE = frozenset(("message.accepted", "message.appended"))
"""The events whose own id is the message's."""


class Stamp(NamedTuple):
    """What every event has: node, time (Unix ms), span, and who caused it (an address, `admin`, `aimx`, None)."""

    node: str
    t_ms: int
    span: SpanRef
    agent: str | None = None


def no_span() -> SpanRef:
    """For what no span covers: ids of its own, so that nothing else seems to have caused it."""
    root = os.urandom(24)
    return SpanRef(root[:16], root[16:])


Value = str | bytes
Committed = Value | Sequence[Value]


def event(
    ev: str,
    stamp: Stamp,
    *,
    fields: Mapping[str, object],
    values: Mapping[str, Committed],
    eid: str | None = None,
    ref: str | None = None,
    messages: Sequence[str] = (),
    key: bytes | None = None,
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """Any event of the catalogue. `values` are committed to and kept as openings: text as it is, octets as hex.

    `ref` names the message in the leaf and the row; `messages` only in the row. Without `key` a fresh one is made.
    Raises ValueError when `fields` or `values` are not exactly what the catalogue says.
    """
    kind = CATALOGUE[ev]
    if fields.keys() != kind.fields.keys() or values.keys() != kind.commits.keys():
        raise ValueError(f"the fields of {ev} are {sorted(kind.fields)} and its values {sorted(kind.commits)}")
    key = key or new_key()
    eid = eid or new_eid(stamp.t_ms)
    trace_id, span_id = stamp.span
    commit = committer(key)
    commits: dict[str, object] = {"span": commit("span", span_id), "trace": commit("trace", trace_id)}
    for part, value in values.items():
        commits[part] = commitment(commit, part, value)
    leaf: dict[str, object] = {**fields, "c": commits, "eid": eid, "ev": ev, "node": stamp.node, "t": stamp.t_ms}
    leaf["v"] = VERSION
    if ref is not None:
        leaf["ref"] = ref
    octets = canonical(leaf)
    if len(octets) > MAX_ENTRY:
        raise ValueError(f"a leaf of {ev} has {len(octets)} octets, more than an entry bundle can hold")
    detail: dict[str, Any] = {"open": {part: _opening(value) for part, value in values.items()}} if values else {}
    if facts:
        detail.update(facts)
    return EventRow(
        eid=eid,
        ev=ev,
        t_ms=stamp.t_ms,
        trace_id=trace_id,
        span_id=span_id,
        leaf=octets,
        ref=ref,
        messages=tuple(messages),
        agent=stamp.agent,
        key=key,
        detail=detail,
    )


def commitment(commit: Callable[[str, bytes], str], part: str, value: Committed) -> str | list[str]:
    """One commitment; for a list one for each member, or one to all of them when they are more than FOLD_ABOVE.

    `commit` is `aimx.tlog.leaf.committer(key)`.
    """
    if isinstance(value, str):
        return commit(part, value.encode())
    if isinstance(value, bytes):
        return commit(part, value)
    members = [_octets(member) for member in value]
    if len(members) > FOLD_ABOVE:
        return commit(part, fold_values(members))
    return [commit(part, member) for member in members]


def opened(part: str, opening: Any) -> Committed:
    """The value that an opening in `detail["open"]` stands for; the inverse of what `event` keeps there."""
    if part in _HASHES:
        return bytes.fromhex(opening)
    return opening if isinstance(opening, str) else list(opening)


_HASHES = frozenset(_MESSAGE)


def _octets(value: Value) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _opening(value: Committed) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str) else list(value)


# --- builders, one for each event ---


def log_opened(
    stamp: Stamp, *, origin: str, log: str, receipt: str, prev: str | None = None, start: int = 0, why: str = "first"
) -> EventRow:
    """`log` and `receipt` are verifier keys; `prev` is the text of the last checkpoint of the shard before it."""
    fields = {"origin": origin, "log": log, "receipt": receipt, "prev": prev, "start": start, "why": why}
    return event("log.opened", stamp, fields=fields, values={})


def log_closed(stamp: Stamp, *, eid: str, origin: str, next: str, log: str) -> EventRow:
    """`next` is the origin of the shard that follows, `log` its verifier key."""
    return event("log.closed", stamp, eid=eid, fields={"origin": origin, "next": next, "log": log}, values={})


def log_dropped(stamp: Stamp, *, origin: str, size: int, last: str, by: str) -> EventRow:
    """`last` is the text of the dropped shard's last checkpoint."""
    fields = {"origin": origin, "size": size, "last": last}
    return event("log.dropped", stamp, fields=fields, values={"by": by})


def message_accepted(
    stamp: Stamp,
    *,
    eid: str,
    key: bytes,
    data: bytes,
    header: bytes,
    body: bytes,
    sender: str,
    recipients: Sequence[str],
    size: int,
    auth: str = "agent",
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """`data`, `header`, `body` are SHA-256 digests (32 octets); `key` becomes the message's key for all its events."""
    row = event(
        "message.accepted",
        stamp,
        eid=eid,
        key=key,
        fields={"size": size, "auth": auth},
        values={"data": data, "hdr": header, "body": body, "from": sender, "rcpt": recipients},
        facts=facts,
    )
    row.ref = eid
    return row


def message_appended(
    stamp: Stamp,
    *,
    eid: str,
    key: bytes,
    data: bytes,
    header: bytes,
    body: bytes,
    by: str,
    box: tuple[str, str],
    size: int,
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """As `message_accepted`; `box` is (owner, mailbox name)."""
    row = event(
        "message.appended",
        stamp,
        eid=eid,
        key=key,
        fields={"size": size},
        values={"data": data, "hdr": header, "body": body, "by": by, "box": _box(box)},
        facts=facts,
    )
    row.ref = eid
    return row


def message_repeated(stamp: Stamp, *, message: str, key: bytes | None, by: str) -> EventRow:
    """`message` is the eid of the first one, `key` the message's key. The agent `by` was answered with its receipt."""
    facts = {"text": "sent again under its idempotency key: answered with the first receipt"}
    return event("message.repeated", stamp, ref=message, key=key, fields={}, values={"by": by}, facts=facts)


def message_rejected(
    stamp: Stamp,
    *,
    code: int,
    status: str,
    by: str,
    recipients: Sequence[str] = (),
    n: int = 1,
    since_ms: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """An agent's refused message (`by` is its address), or `n` refusals of strangers since `since_ms` (`by` empty)."""
    since = stamp.t_ms if since_ms is None else since_ms
    return event(
        "message.rejected",
        stamp,
        fields={"rc": code, "st": status, "n": n, "since": since},
        values={"by": by, "rcpt": recipients},
        facts=facts,
    )


def message_traced(
    stamp: Stamp,
    *,
    eid: str,
    data: bytes,
    by: str,
    recipients: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """A dry run. `eid` is what the message would have had."""
    values: dict[str, Committed] = {"by": by, "data": data, "rcpt": recipients}
    return event("message.traced", stamp, eid=eid, fields={"n": len(recipients)}, values=values, facts=facts)


def loop_refused(
    stamp: Stamp,
    *,
    rule: str,
    count: int,
    by: str,
    loop: str,
    recipients: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """`loop` is the loop key (workflow, or trace in hex), `count` what `rule` counted."""
    return event(
        "loop.refused",
        stamp,
        fields={"rule": rule, "count": count},
        values={"by": by, "loop": loop, "rcpt": recipients},
        facts=facts,
    )


def message_deferred(
    stamp: Stamp,
    *,
    message: str,
    key: bytes,
    recipient: str,
    why: str,
    attempt: int,
    next_ms: int | None,
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """`message` is the message's eid, `key` the message's key, `attempt` counts from 1."""
    return event(
        "message.deferred",
        stamp,
        ref=message,
        key=key,
        fields={"why": why, "attempt": attempt, "next": next_ms},
        values={"rcpt": recipient},
        facts=facts,
    )


def message_bounced(
    stamp: Stamp,
    *,
    message: str,
    key: bytes,
    recipient: str,
    why: str,
    attempt: int,
    dsn: str | None,
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """`dsn` is the eid of the DSN, None when nobody is to be told."""
    return event(
        "message.bounced",
        stamp,
        ref=message,
        key=key,
        fields={"why": why, "attempt": attempt, "dsn": dsn},
        values={"rcpt": recipient},
        facts=facts,
    )


def delivery_mailbox(
    stamp: Stamp,
    *,
    message: str,
    key: bytes,
    recipient: str,
    box: tuple[str, str],
    uid: int,
    attempt: int = 1,
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """`box` is (owner, mailbox name)."""
    return event(
        "delivery.mailbox",
        stamp,
        ref=message,
        key=key,
        fields={"attempt": attempt, "uid": uid},
        values={"rcpt": recipient, "box": _box(box)},
        facts=facts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A delivery that left the node: of which message under which key, to whom, by what, and who took it how."""

    message: str
    key: bytes
    recipient: str
    via: str
    host: str
    code: int
    attempt: int


def message_relayed(stamp: Stamp, departure: Departure, facts: Mapping[str, Any] | None = None) -> EventRow:
    return _departed("message.relayed", stamp, departure, facts)


def delivery_webhook(stamp: Stamp, departure: Departure, facts: Mapping[str, Any] | None = None) -> EventRow:
    return _departed("delivery.webhook", stamp, departure, facts)


def delivery_lmtp(stamp: Stamp, departure: Departure, facts: Mapping[str, Any] | None = None) -> EventRow:
    return _departed("delivery.lmtp", stamp, departure, facts)


def mailbox_accessed(
    stamp: Stamp, *, by: str, box: tuple[str, str], via: str, admin: bool, message: str | None = None
) -> EventRow:
    """`message`: the eid, when one raw message was looked at."""
    return event(
        "mailbox.accessed",
        stamp,
        ref=message,
        fields={"via": via, "admin": admin},
        values={"by": by, "box": _box(box)},
    )


class Command(NamedTuple):
    """One IMAP command on messages: who, in which mailbox (owner, name), and the messages' eids by ascending UID."""

    by: str
    box: tuple[str, str]
    eids: Sequence[str]


def message_read(stamp: Stamp, command: Command, facts: Mapping[str, Any] | None = None) -> EventRow:
    return _command("message.read", stamp, command, {}, {}, facts)


def message_flagged(
    stamp: Stamp,
    command: Command,
    *,
    op: str,
    flags: Sequence[str] | frozenset[str],
    ack: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> EventRow:
    """`op` is `add`, `remove` or `replace`; `ack`: the command acknowledged."""
    return _command(
        "message.flagged", stamp, command, {"op": op, "ack": ack}, {"flags": " ".join(sorted(flags))}, facts
    )


def message_copied(
    stamp: Stamp, command: Command, *, to: tuple[str, str], facts: Mapping[str, Any] | None = None
) -> EventRow:
    return _command("message.copied", stamp, command, {}, {"to": _box(to)}, facts)


def message_moved(
    stamp: Stamp, command: Command, *, to: tuple[str, str], facts: Mapping[str, Any] | None = None
) -> EventRow:
    return _command("message.moved", stamp, command, {}, {"to": _box(to)}, facts)


def message_expunged(stamp: Stamp, command: Command, facts: Mapping[str, Any] | None = None) -> EventRow:
    return _command("message.expunged", stamp, command, {}, {}, facts)


def message_erased(stamp: Stamp, *, message: str, by: str, why: str, leaf: int | None) -> EventRow:
    """Under a key of its own: the message's key is what is erased. `leaf`: the index of the message's acceptance."""
    return event("message.erased", stamp, ref=message, fields={"why": why, "leaf": leaf}, values={"by": by})


def hold_placed(stamp: Stamp, *, hold: Hold) -> EventRow:
    return _held("hold.placed", stamp, hold, hold.by)


def hold_released(stamp: Stamp, *, hold: Hold, by: str) -> EventRow:
    """`by` ended it, whoever had placed it."""
    return _held("hold.released", stamp, hold, by)


def _held(ev: str, stamp: Stamp, hold: Hold, by: str) -> EventRow:
    values = {"by": by, "subject": hold.subject, "why": hold.reason}
    return event(ev, stamp, fields={"kind": hold.kind}, values=values)


def queue_changed(stamp: Stamp, *, what: str, by: str, messages: Sequence[str], deliveries: Sequence[int]) -> EventRow:
    """`messages` are the eids of the deliveries' messages, in the same order as their numbers."""
    different = tuple(dict.fromkeys(messages))
    return event(
        "queue.changed",
        stamp,
        ref=different[0] if len(different) == 1 else None,
        messages=different if len(different) > 1 else (),
        fields={"what": what, "n": len(deliveries)},
        values={"by": by, "msgs": "\n".join(messages), "ids": " ".join(map(str, deliveries))},
        facts={"text": f"{_STEERED[what]} by {by}"},
    )


_STEERED = {"retry": "made due", "hold": "held", "release": "released", "drop": "dropped undelivered"}


def config_changed(
    stamp: Stamp, *, what: str, by: str, subject: str, facts: Mapping[str, Any] | None = None
) -> EventRow:
    """`what` is low-cardinality (`agent.added`, …); `subject` names the thing."""
    return event("config.changed", stamp, fields={"what": what}, values={"by": by, "subject": subject}, facts=facts)


def data_mended(stamp: Stamp, *, what: str, n: int, by: str) -> EventRow:
    return event("data.mended", stamp, fields={"what": what, "n": n}, values={"by": by})


def key_rotated(stamp: Stamp, *, what: str, by: str, old: str, new: str, eid: str | None = None) -> EventRow:
    fields = {"what": what, "old": old, "new": new}
    return event("key.rotated", stamp, eid=eid, fields=fields, values={"by": by})


def login_refused(
    stamp: Stamp, *, via: str, n: int, since_ms: int, sources: Sequence[str], accounts: Sequence[str]
) -> EventRow:
    """Failed logins since `since_ms`, in one leaf however many: nobody outside may drive our log."""
    return event(
        "login.refused",
        stamp,
        fields={"via": via, "n": n, "since": since_ms},
        values={"src": sorted(set(sources)), "accounts": sorted(set(accounts))},
    )


def anchor_recorded(stamp: Stamp, *, kind: str, size: int, who: str, proof: str) -> EventRow:
    """`proof` is base64: the cosignature itself (72 octets after the key id), or a SHA-256."""
    return event("anchor.recorded", stamp, fields={"kind": kind, "size": size, "proof": proof}, values={"who": who})


def heartbeat(stamp: Stamp, *, size: int) -> EventRow:
    return event("heartbeat", stamp, fields={"size": size}, values={})


def _departed(ev: str, stamp: Stamp, departure: Departure, facts: Mapping[str, Any] | None) -> EventRow:
    return event(
        ev,
        stamp,
        ref=departure.message,
        key=departure.key,
        fields={"attempt": departure.attempt, "via": departure.via, "code": departure.code},
        values={"rcpt": departure.recipient, "host": departure.host},
        facts=facts,
    )


def _box(box: tuple[str, str]) -> str:
    return f"{box[0]} {box[1]}"


def _command(
    ev: str,
    stamp: Stamp,
    command: Command,
    fields: Mapping[str, object],
    values: Mapping[str, Committed],
    facts: Mapping[str, Any] | None,
) -> EventRow:
    eids = command.eids
    one = eids[0] if len(eids) == 1 else None
    return event(
        ev,
        stamp,
        ref=one,
        messages=() if one else eids,
        fields={"n": len(eids), **fields},
        values={"by": command.by, "box": _box(command.box), "msgs": "\n".join(eids), **values},
        facts=facts,
    )
