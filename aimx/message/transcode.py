"""A message made fit for a narrower way: 7-bit, lines of at most 998 octets (RFC 2045 §6, RFC 6152 §3).

Only leaf parts that need it are encoded anew, and their `Content-Transfer-Encoding` says so; all other octets stay.
What a signature or an encryption covers is never touched, and header fields are not either: there one refuses instead.
"""

import re
from base64 import b64encode
from binascii import b2a_qp

from aimx.message.header import Field, HeaderBlock
from aimx.message.part import MAX_DEPTH, Header, content_type, undo_encoding

MAX_LINE = 998
"""Octets without CRLF (RFC 5322 §2.1.1)."""
MAX_SIZE = 16 * 1024 * 1024
"""Octets of a body that is encoded at all: it is held in memory three times."""

_OPAQUE = frozenset({"multipart/signed", "multipart/encrypted"})
_IDENTITY = frozenset({"7bit", "8bit", "binary", ""})


class Untouchable(ValueError):
    """It would have to be encoded and may not be. The text says why, fit for the sender."""


def longest_line(body: bytes, limit: int = MAX_LINE) -> bool:
    """Whether any line of `body` is longer than `limit`, found by leaps."""
    start, size = 0, len(body)
    while size - start > limit:
        end = body.rfind(b"\n", start, start + limit + 2)
        if end < 0:
            return True
        start = end + 1
    return False


def fits(body: bytes, *, eight_bit: bool, limit: int = MAX_LINE) -> bool:
    return (eight_bit or body.isascii()) and not longest_line(body, limit)


def encode(header: HeaderBlock, body: bytes, *, eight_bit: bool, limit: int = MAX_LINE) -> bytes:
    """The body made to fit; `header` is changed with it. Raises Untouchable, `header` then being of no more use.

    `eight_bit`: octets above 127 may stay. `limit`: octets a line may have.
    """
    if "DKIM-Signature" in header:
        raise Untouchable("it is signed (DKIM), and encoding it for the next server would break the signature")
    if len(body) > MAX_SIZE:
        raise Untouchable(f"it would have to be encoded for the next server, and is over {MAX_SIZE} octets")
    encoded = _entity(header, body, eight_bit, limit, 0)
    if "MIME-Version" not in header:
        header.replace([*header.fields, Field(b"mime-version", b"MIME-Version: 1.0\r\n")])
    return encoded


def _entity(header: HeaderBlock, body: bytes, eight_bit: bool, limit: int, depth: int) -> bytes:
    if fits(body, eight_bit=eight_bit, limit=limit):
        return body
    kind = content_type(header.get("Content-Type"))
    boundary = kind.parameters.get("boundary")
    if kind.value in _OPAQUE:
        raise Untouchable("a part of it is signed or encrypted, and may not be encoded for the next server")
    if depth >= MAX_DEPTH:
        raise Untouchable("its parts are too deep in each other to be encoded for the next server")
    if kind.value.startswith("multipart/") and boundary:
        _set_encoding(header, "8bit" if eight_bit else "7bit", only_if_there=True)
        return _multipart(body, boundary, eight_bit, limit, depth)
    if kind.value == "message/rfc822":
        _set_encoding(header, "8bit" if eight_bit else "7bit", only_if_there=True)
        return _part(body, eight_bit, limit, depth)
    if kind.value.startswith("message/"):
        raise Untouchable(f"a part of type {kind.value[:60]} may not be encoded for the next server")  # RFC 2046 §5.2
    return _leaf(header, kind, body)


def _part(octets: bytes, eight_bit: bool, limit: int, depth: int) -> bytes:
    """An entity with a header block of its own."""
    header, start = HeaderBlock.parse(octets)
    fields = header.to_bytes()
    if not fits(fields, eight_bit=eight_bit, limit=limit):
        raise Untouchable("the header of a part is 8-bit or has too long a line for the next server")
    body = _entity(header, octets[start:], eight_bit, limit, depth + 1)
    return header.to_bytes() + body


def _multipart(body: bytes, boundary: str, eight_bit: bool, limit: int, depth: int) -> bytes:
    """Each part between its delimiter lines (RFC 2046 §5.1.1), which stay octet for octet."""
    mark = re.escape(b"--" + boundary.encode("utf-8", "replace"))
    delimiters = list(re.finditer(rb"(?:\A|(?<=\n))" + mark + rb"(--)?[ \t]{0,64}(?:\r?\n|\Z)", body))
    if not delimiters:
        raise Untouchable("a multipart without its boundary cannot be encoded for the next server")
    out: list[bytes] = [_filler(body[: delimiters[0].start()], eight_bit, limit)]
    for delimiter, following in zip(delimiters, [*delimiters[1:], None], strict=True):
        out.append(delimiter.group())
        inner = body[delimiter.end() : following.start() if following else len(body)]
        if delimiter[1]:  # the closing one; what follows is nobody's
            out.append(_filler(body[delimiter.end() :], eight_bit, limit))
            break
        end = b"\r\n" if following and inner.endswith(b"\r\n") else b""  # it belongs to the delimiter
        out.append(_part(inner[: len(inner) - len(end)], eight_bit, limit, depth) + end)
    return b"".join(out)


def _filler(octets: bytes, eight_bit: bool, limit: int) -> bytes:
    """Preamble and epilogue, which nobody is shown."""
    return octets if fits(octets, eight_bit=eight_bit, limit=limit) else b""


def _leaf(header: HeaderBlock, kind: Header, body: bytes) -> bytes:
    encoding = (header.get("Content-Transfer-Encoding") or "").partition(";")[0].strip().lower()
    if encoding not in _IDENTITY | {"base64", "quoted-printable"}:
        raise Untouchable(f"a part is encoded as {encoding[:30]!r}, which cannot be encoded anew for the next server")
    plain = body if encoding in _IDENTITY else undo_encoding(body, encoding)
    if kind.value.startswith("text/") or encoding == "quoted-printable":
        _set_encoding(header, "quoted-printable")
        return _quoted(plain)
    _set_encoding(header, "base64")
    return _base64(plain)


def _quoted(plain: bytes) -> bytes:
    """RFC 2045 §6.7, line ends as they are. That there is a CRLF in front makes Python write CRLF at soft breaks."""
    encoded = b2a_qp(b"\r\n" + plain, quotetabs=False, istext=True, header=False)
    return encoded[2:]


def _base64(plain: bytes) -> bytes:
    text = b64encode(plain)
    return b"".join(text[at : at + 76] + b"\r\n" for at in range(0, len(text), 76))


def _set_encoding(header: HeaderBlock, encoding: str, *, only_if_there: bool = False) -> None:
    there = "Content-Transfer-Encoding" in header
    if only_if_there and not there:
        return
    header.strip(lambda name: name == b"content-transfer-encoding")
    line = f"Content-Transfer-Encoding: {encoding}\r\n".encode()
    header.replace([*header.fields, Field(b"content-transfer-encoding", line)])
    if not header.separator:
        header.separator = b"\r\n"
