"""The parts of a MIME message as it was received: a tolerant, linear reader (RFC 2045, 2046, 2183, 2231).

Garbage is answered with something usable: an unknown transfer encoding or a damaged base 64 gives what can be had, a
multipart without its boundary is one leaf. Depth and number of parts are bounded.
"""

import re
from base64 import b64decode
from binascii import Error as BinasciiError
from dataclasses import dataclass, field
from quopri import decodestring
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from aimx.message.header import HeaderBlock, decode_text

MAX_DEPTH = 8
MAX_PARTS = 200
MAX_PARAMETERS = 64
_LINE_REST = 128

_TYPE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,127}/[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,127}", re.ASCII)
_PARAMETER = re.compile(
    r";[ \t\r\n]*+([^\s=;\"]++)[ \t\r\n]*+(?:=[ \t\r\n]*+(?:\"((?:[^\"\\]|\\.)*+)\"|([^;\r\n]*+)))?+", re.DOTALL
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SECTION = re.compile(r"(.+?)\*(\d{1,3})?(\*)?")
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))


class Header(NamedTuple):
    """A Content-Type or Content-Disposition value: lower-cased word, parameters by lower-cased name."""

    value: str
    parameters: dict[str, str]


@dataclass(slots=True)
class Leaf:
    """A part that is no multipart."""

    content_type: str
    """Lower-case type/subtype, without parameters."""
    parameters: dict[str, str]
    raw: bytes
    """As it stands in the message, transfer encoding on."""
    encoding: str = "7bit"
    disposition: str = ""
    disposition_parameters: dict[str, str] = field(default_factory=dict)

    @property
    def filename(self) -> str | None:
        return self.disposition_parameters.get("filename") or self.parameters.get("name")

    @property
    def full_type(self) -> str:
        """Type with parameters, as the codecs of `payload` take it."""
        return "".join([self.content_type, *(f'; {name}="{value}"' for name, value in self.parameters.items())])

    def data(self) -> bytes:
        """The content, transfer encoding undone."""
        return undo_encoding(self.raw, self.encoding)


def parse_header(value: str | None) -> Header:
    """Word and parameters of a structured header; RFC 2231 continuations joined and charsets decoded."""
    if not value:
        return Header("", {})
    word, semicolon, _ = value.partition(";")
    found: dict[str, str] = {}
    if semicolon:
        for i, match in enumerate(_PARAMETER.finditer(value, len(word))):
            if i == MAX_PARAMETERS:
                break
            name, quoted, plain = match.groups()
            text = _ESCAPE.sub(r"\1", quoted) if quoted is not None else (plain or "").strip()
            found.setdefault(name.lower(), text)
    return Header(word.strip().lower(), _join_sections(found) if any("*" in name for name in found) else found)


def content_type(value: str | None) -> Header:
    """A Content-Type; absent or malformed is text/plain (RFC 2045 §5.2)."""
    header = parse_header(value)
    return header if _TYPE.fullmatch(header.value) else Header("text/plain", {})


def leaves(headers: HeaderBlock, body: bytes) -> list[Leaf]:
    """All leaves of a message in order; at most 200, multiparts at most 8 deep."""
    found: list[Leaf] = []
    _walk(headers, body, 0, found)
    return found


def payload_leaf(headers: HeaderBlock, body: bytes) -> Leaf:
    """What an agent means by "the message": the part marked `Content-Disposition: inline; payload`, else the first."""
    found = leaves(headers, body)
    return next((leaf for leaf in found if "payload" in leaf.disposition_parameters), found[0])


def undo_encoding(raw: bytes, encoding: str) -> bytes:
    """Content-Transfer-Encoding undone (RFC 2045 §6); what cannot be decoded is left as far as it went."""
    match encoding:
        case "base64":
            # Line breaks and stray characters are to be ignored (RFC 2045 §6.8); padding may be missing or misplaced.
            clean = raw.translate(None, _NOT_BASE64)
            spare = len(clean) % 4
            clean = clean[: len(clean) - 1] if spare == 1 else clean + b"=" * (-spare % 4)
            try:
                return b64decode(clean)
            except BinasciiError:
                return raw
        case "quoted-printable":
            return decodestring(raw)
        case _:
            return raw


def _walk(headers: HeaderBlock, body: bytes, depth: int, found: list[Leaf]) -> None:
    kind = content_type(headers.get("Content-Type"))
    if kind.value.startswith("multipart/") and kind.parameters.get("boundary") and depth < MAX_DEPTH:
        pieces = _split(body, kind.parameters["boundary"])
        for piece in pieces:
            if len(found) >= MAX_PARTS:
                return
            inner, start = HeaderBlock.parse(piece)
            _walk(inner, piece[start:], depth + 1, found)
        if pieces:
            return
    disposition = parse_header(headers.get("Content-Disposition"))
    encoding = (headers.get("Content-Transfer-Encoding") or "7bit").partition(";")[0].strip().lower()
    found.append(Leaf(kind.value, kind.parameters, body, encoding, disposition.value, disposition.parameters))


def _split(body: bytes, boundary: str) -> list[bytes]:
    """The bodies between delimiter lines (RFC 2046 §5.1.1); the last one may lack its end."""
    mark = b"--" + boundary.encode("utf-8", "replace")
    pieces: list[bytes] = []
    start = -1
    pos = body.find(mark)
    while pos >= 0:
        after = pos + len(mark)
        # A delimiter is a line of its own; only some white space may follow. The bounded look keeps this linear.
        end = body.find(b"\n", after, after + _LINE_REST) if pos == 0 or body[pos - 1] == 10 else -1
        line_end = end + 1 if end >= 0 else len(body) if len(body) - after < _LINE_REST else -1
        rest = body[after:line_end].strip() if line_end >= 0 else b"?"
        if (pos == 0 or body[pos - 1] == 10) and rest in (b"", b"--"):
            if start >= 0:
                cut = pos - 2 if body[pos - 2 : pos] == b"\r\n" else pos - 1
                pieces.append(body[start : max(cut, start)])
            if rest == b"--":
                return pieces
            start = line_end
        if len(pieces) >= MAX_PARTS:
            return pieces
        pos = body.find(mark, after)
    if start >= 0:
        pieces.append(body[start:])
    return pieces


def _join_sections(found: dict[str, str]) -> dict[str, str]:
    """RFC 2231 §3, §4: `name*0*=utf-8''a%20; name*1=b` is one parameter."""
    plain = {name: value for name, value in found.items() if "*" not in name}
    sections: dict[str, list[tuple[int, bool, str]]] = {}
    for name, value in found.items():
        match = _SECTION.fullmatch(name)
        if match:
            sections.setdefault(match.group(1), []).append((int(match.group(2) or 0), _is_extended(match), value))
    for name, parts in sections.items():
        parts.sort(key=lambda part: part[0])
        charset = "utf-8"
        if parts[0][1] and parts[0][2].count("'") >= 2:
            charset, _, rest = parts[0][2].split("'", 2)
            parts[0] = (parts[0][0], True, rest)
        data = b"".join([unquote_to_bytes(value) if extended else value.encode() for _, extended, value in parts])
        plain[name] = decode_text(data, charset.lower() or "utf-8")
    return plain


def _is_extended(match: re.Match[str]) -> bool:
    return match.group(3) is not None or match.group(2) is None
