"""Delivery status notifications from plain data (RFC 3464, RFC 3462/6522), marked so that no program answers
them (RFC 3834).

A DSN is sent with the null sender `<>` (RFC 5321 §4.5.5). It returns the headers of the original only, never its body.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from aimx.message.compose import entity, multipart
from aimx.message.header import HeaderBlock
from aimx.message.part import leaves
from aimx.message.payload import Part
from aimx.message.stamp import date, fold, line

Action = Literal["failed", "delayed", "delivered", "relayed"]

MAX_RETURNED_HEADERS = 64 * 1024
ACTION_FIELD = "AIMX-Action"
"""Says in the header what the report is about, for who has not read the body yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """What became of one recipient. Times are Unix milliseconds."""

    address: str
    original: str | None = None
    """As the sender gave it in ORCPT (RFC 3461 §4.2): `rfc822;` and xtext."""
    action: Action
    status: str
    """Enhanced status code (RFC 3463), such as 4.2.2; for a failure its class is written as 5 or 4 as given."""
    reason: str
    """For people: why, and what helps."""
    diagnostic: str | None = None
    """What the other side said, such as `554 5.4.6 loop`; None when there was no other side."""
    remote: str | None = None
    """Host name of the other side."""
    last_attempt_ms: int | None = None
    attempts: int = 0
    will_retry_until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One DSN. `original` are the headers as stored; `event` is the audit event that records the failure."""

    domain: str
    """The reporting domain: `postmaster@domain` sends it."""
    host: str
    to: str
    message_id: str
    recipients: Sequence[Recipient]
    original: HeaderBlock
    accepted_ms: int
    now_ms: int
    eid: str
    """Our id of the original message."""
    trace_id: bytes
    event: str | None = None
    envelope_id: str | None = None
    """ENVID of the sender (RFC 3461 §4.4), xtext."""
    body: bytes | None = None
    """Of the original, where all of it goes back."""
    stamps: Iterable[bytes] = ()
    """Finished lines for the top: the trace context."""


def write(notice: Notice) -> bytes:
    """The message, CRLF, 7-bit but for what the original headers hold."""
    action = _worst(notice)
    original_id = notice.original.get("Message-ID")
    lines = [
        *notice.stamps,
        line(ACTION_FIELD, action),
        fold("From", [f"Mail Delivery System <postmaster@{notice.domain}>"]),
        fold("To", [notice.to]),
        line("Subject", _SUBJECTS[action]),
        line("Date", date(notice.now_ms)),
        fold("Message-ID", [notice.message_id]),
        b"Auto-Submitted: auto-replied\r\n",  # RFC 3834 §5
    ]
    if original_id:
        # RFC 3834 §3.1.5: so that it threads, and so that the sender's program finds what failed.
        safe = _clean(original_id)
        lines += [fold("In-Reply-To", [safe]), fold("References", [safe])]
    workflow = notice.original.get("X-Workflow-ID")
    if workflow:
        lines.append(line("X-Workflow-ID", _clean(workflow)))
    lines.append(b"MIME-Version: 1.0\r\n")
    parts = [
        entity(Part('text/plain; charset="utf-8"', _words(notice, action).encode())),
        _status_entity(notice),
        _headers_entity(notice.original) if notice.body is None else _whole_entity(notice.original, notice.body),
    ]
    return b"".join(lines) + multipart("report", parts, ["report-type=delivery-status"])


_SUBJECTS: dict[Action, str] = {
    "failed": "Undelivered mail returned to sender",
    "delayed": "Delayed mail (still being retried)",
    "relayed": "Mail handed to another server",
    "delivered": "Mail delivered",
}
"""From the worst to the best."""
_HEADLINES: dict[Action, str] = {
    "failed": "could not be delivered",
    "delayed": "has not been delivered yet",
    "relayed": "was handed over",
    "delivered": "was delivered",
}


def _worst(notice: Notice) -> Action:
    return min((recipient.action for recipient in notice.recipients), key=list(_SUBJECTS).index)


def _words(notice: Notice, action: Action) -> str:
    subject = _clean(notice.original.get("Subject") or "")
    out = [
        f"Your message {_HEADLINES[action]}:",
        "",
        f"  subject   {subject or '(none)'}",
        f"  accepted  {date(notice.accepted_ms)}",
        "",
    ]
    for recipient in notice.recipients:
        out.append(f"<{_clean(recipient.address)}>: {_clean(recipient.reason)} ({_clean(recipient.status)})")
        if recipient.attempts:
            out.append(f"  attempts: {recipient.attempts}")
        if recipient.diagnostic:
            out.append(f"  the other side said: {_clean(recipient.diagnostic)}")
        if recipient.will_retry_until_ms:
            out.append(f"  retried until {date(recipient.will_retry_until_ms)}")
    out += ["", f"See all of it: aimx trace {notice.trace_id.hex()}"]
    return "\n".join(out)


def _status_entity(notice: Notice) -> bytes:
    """message/delivery-status (RFC 3464 §2.1): per-message fields, then one block per recipient."""
    blocks = [
        [
            *([_field("Original-Envelope-Id", _from_xtext(notice.envelope_id))] if notice.envelope_id else []),
            line("Reporting-MTA", f"dns; {notice.host}"),
            line("Arrival-Date", date(notice.accepted_ms)),
            # Extension fields (§2.4): where the audit log and the trace say the same.
            line("AIMX-Message", notice.eid),
            line("AIMX-Trace-ID", notice.trace_id.hex()),
            *([line("AIMX-Event", notice.event)] if notice.event else []),
        ]
    ]
    for recipient in notice.recipients:
        kind = "rfc822" if recipient.address.isascii() else "utf-8"  # RFC 6533 §3
        fields = [
            *([_field("Original-Recipient", _original(recipient.original))] if recipient.original else []),
            _field("Final-Recipient", f"{kind}; {_clean(recipient.address)}"),
            _field("Action", recipient.action),
            _field("Status", _clean(recipient.status)),
        ]
        if recipient.remote:
            fields.append(_field("Remote-MTA", f"dns; {_clean(recipient.remote)}"))
        if recipient.diagnostic:
            fields.append(_field("Diagnostic-Code", f"smtp; {_clean(recipient.diagnostic)}"))
        if recipient.last_attempt_ms:
            fields.append(line("Last-Attempt-Date", date(recipient.last_attempt_ms)))
        if recipient.will_retry_until_ms:
            fields.append(line("Will-Retry-Until", date(recipient.will_retry_until_ms)))
        blocks.append(fields)
    body = b"\r\n".join([b"".join(block) for block in blocks])
    media = b"message/delivery-status" if body.isascii() else b"message/global-delivery-status"
    encoding = b"" if body.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
    return b"Content-Type: " + media + b"\r\n" + encoding + b"\r\n" + body


def _headers_entity(original: HeaderBlock) -> bytes:
    raw = b"".join(original.raw_fields())
    if len(raw) > MAX_RETURNED_HEADERS:
        raw = raw[: raw.rfind(b"\n", 0, MAX_RETURNED_HEADERS) + 1]
    raw = (
        raw.replace(b"\0", b"").replace(b"\r\n", b"\n").replace(b"\r", b" ").rstrip(b"\n").replace(b"\n", b"\r\n")
        + b"\r\n"
    )
    encoding = b"" if raw.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
    return b"Content-Type: text/rfc822-headers\r\n" + encoding + b"\r\n" + raw


def _whole_entity(original: HeaderBlock, body: bytes) -> bytes:
    """RFC 3462 §1: all of the message, as stored."""
    raw = b"".join(original.raw_fields()) + b"\r\n" + body
    encoding = b"" if raw.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
    return b"Content-Type: message/rfc822\r\n" + encoding + b"\r\n" + raw


def _original(orcpt: str) -> str:
    """RFC 3464 §2.3.1: what ORCPT said, xtext undone."""
    kind, _, address = orcpt.partition(";")
    return f"{_clean(kind)}; {_from_xtext(address)}"


def _from_xtext(value: str) -> str:
    """RFC 3461 §4; the outcome is one line."""
    return _clean(re.sub(r"\+([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), value))


def _field(name: str, value: str) -> bytes:
    """Never RFC 2047: the report is read by programs; UTF-8 stands as it is (RFC 6533)."""
    return fold(name, value.split(" "), separator=" ")


def _clean(value: str) -> str:
    """Text of a stranger's as one line."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", value).strip()[:900]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a DSN says of its first recipient. Empty where it does not say; the ids only where an AIMX wrote it."""

    action: str
    status: str
    recipient: str
    diagnostic: str
    remote: str
    eid: str
    """The original message's."""
    trace_id: str
    event: str
    """In the audit log, which proves what is said here."""


def read(header: HeaderBlock, body: bytes) -> Report | None:
    """Of a whole message; None when it is no DSN (RFC 3464 §2)."""
    kinds = ("message/delivery-status", "message/global-delivery-status")
    for leaf in leaves(header, body):
        if leaf.content_type not in kinds:
            continue
        about, start = HeaderBlock.parse(leaf.data())
        recipient, _ = HeaderBlock.parse(leaf.data()[start:])
        return Report(
            action=(recipient.get("Action") or "").lower(),
            status=(recipient.get("Status") or "").partition(" ")[0],
            recipient=_value(recipient.get("Final-Recipient")),
            diagnostic=_value(recipient.get("Diagnostic-Code")),
            remote=_value(recipient.get("Remote-MTA")),
            eid=about.get("AIMX-Message") or "",
            trace_id=about.get("AIMX-Trace-ID") or "",
            event=about.get("AIMX-Event") or "",
        )
    return None


def _value(typed: str | None) -> str:
    """`rfc822; bob@b.example` without its type."""
    return (typed or "").partition(";")[2].strip()
