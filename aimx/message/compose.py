"""A new message from plain values: RFC 5322 with MIME, CRLF line ends, 7-bit whatever the payload is.

Written by hand because `email.policy.SMTP` turns a long comma-joined list into RFC 2047 words, which breaks trace
headers.
"""

import re
import secrets
import time
from base64 import encodebytes
from collections.abc import Iterable, Mapping, Sequence
from quopri import encodestring
from urllib.parse import quote

from aimx.message.payload import Part
from aimx.message.stamp import date, fold, line

_ADDRESS = re.compile(r"[^\s<>()\[\],;:\\\"@\x00-\x1f\x7f]+@[^\s<>()\[\],;:\\\"@\x00-\x1f\x7f]+")
_NAME = re.compile(r"[!-9;-~]{1,76}")
_OWN = frozenset(
    {
        "from",
        "to",
        "cc",
        "subject",
        "date",
        "message-id",
        "in-reply-to",
        "references",
        "mime-version",
        "content-type",
        "content-transfer-encoding",
        "content-disposition",
        "x-workflow-id",
        "x-agent-id",
        "x-priority",
        "traceparent",
        "tracestate",
        "baggage",
    }
)
"""Headers that have an argument of their own."""
_LONG_LINE = re.compile(rb"[^\n]{998}")


def compose(
    *,
    sender: str,
    to: Sequence[str],
    payload: Part,
    subject: str = "",
    cc: Sequence[str] = (),
    text: str | None = None,
    attachments: Sequence[Part] = (),
    message_id: str | None = None,
    in_reply_to: str | None = None,
    references: Sequence[str] = (),
    workflow: str | None = None,
    agent: str | None = None,
    priority: int | None = None,
    headers: Mapping[str, str] | None = None,
    stamps: Iterable[bytes] = (),
    t_ms: int | None = None,
) -> bytes:
    """The bytes of a message.

    `stamps` are finished lines that go on top (the trace context: `telemetry.context.write`). `text` is a cover for
    people: it goes before the payload, which is then marked. `references` are oldest first; `in_reply_to` is added
    when it is not the last of them. `priority` is 1 (urgent) to 5. Without `message_id` the server gives one.
    ValueError for an address, header name or value that cannot be written.
    """
    lines: list[bytes] = list(stamps)
    lines.append(fold("From", [_address(sender)]))
    lines.append(fold("To", [_address(address) for address in to]))
    if cc:
        lines.append(fold("Cc", [_address(address) for address in cc]))
    lines.append(line("Subject", subject))
    lines.append(line("Date", date(time.time_ns() // 1_000_000 if t_ms is None else t_ms)))
    if message_id:
        lines.append(fold("Message-ID", [message_id]))
    chain = list(references)
    if in_reply_to:
        lines.append(fold("In-Reply-To", [in_reply_to]))
        if in_reply_to not in chain:
            chain.append(in_reply_to)
    if chain:
        lines.append(fold("References", chain, separator=" "))
    named = {"X-Workflow-ID": workflow, "X-Agent-ID": agent, "X-Priority": None if priority is None else str(priority)}
    lines += [line(name, value) for name, value in named.items() if value is not None]
    for name, value in (headers or {}).items():
        if not _NAME.fullmatch(name) or name.lower() in _OWN:
            raise ValueError(f"{name!r} cannot be given as an extra header")
        lines.append(line(name, value))
    lines.append(b"MIME-Version: 1.0\r\n")
    return b"".join(lines) + _content(payload, text, attachments)


def entity(part: Part, disposition: str | None = None) -> bytes:
    """One MIME entity: its Content-* headers, the empty line and the encoded body, which ends with CRLF."""
    encoding, body = transfer_encode(part)
    lines = [fold("Content-Type", part.content_type.split("; "), separator="; ")]
    lines.append(f"Content-Transfer-Encoding: {encoding}\r\n".encode())
    if disposition:
        lines.append(fold("Content-Disposition", [disposition, *_filename(part.filename)], separator="; "))
    return b"".join([*lines, b"\r\n", body])


def multipart(subtype: str, entities: Sequence[bytes], parameters: Sequence[str] = ()) -> bytes:
    """A multipart entity, MIME-Version not included."""
    boundary = f"aimx-{secrets.token_hex(12)}"
    mark = boundary.encode()
    head = fold("Content-Type", [f"multipart/{subtype}", *parameters, f'boundary="{boundary}"'], separator="; ")
    inner = b"".join([b"\r\n--" + mark + b"\r\n" + each for each in entities])
    return head + inner + b"\r\n--" + mark + b"--\r\n"


def transfer_encode(part: Part) -> tuple[str, bytes]:
    """(Content-Transfer-Encoding, body): 7bit where it can be, quoted-printable for text, base64 for the rest."""
    kind = part.content_type.partition(";")[0].lower()
    data = part.data
    if kind.startswith("text/") or kind.endswith("json"):
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
        if data.isascii() and b"\0" not in data and not _LONG_LINE.search(data):
            return "7bit", data
        if kind == "text/plain":
            quoted = encodestring(data.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
            return "quoted-printable", quoted
        data = part.data
    return "base64", encodebytes(data).replace(b"\n", b"\r\n") or b"\r\n"


def _content(payload: Part, text: str | None, attachments: Sequence[Part]) -> bytes:
    if text is None and not attachments:
        return entity(payload)
    parts = []
    if text is not None:
        parts.append(entity(Part('text/plain; charset="utf-8"', text.encode("utf-8", "replace"))))
    # A parameter must have a value (RFC 2183 §2); readers look for its name only.
    parts.append(entity(payload, "inline; payload=yes"))
    parts += [entity(part, "attachment") for part in attachments]
    return multipart("mixed", parts)


def _address(address: str) -> str:
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"{address!r} is not an address")
    return address


def _filename(name: str | None) -> list[str]:
    if name is None:
        return []
    if name.isascii() and name.isprintable() and len(name) <= 60:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return [f'filename="{escaped}"']
    return [f"filename*=utf-8''{quote(name[:200], safe='')}"]  # RFC 2231 §4
