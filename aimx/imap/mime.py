"""The MIME structure of a message, its parts as octet ranges, and its ENVELOPE: linear, tolerant, bounded.

`Scanner` reads a body in pieces and keeps none of it: what comes out are offsets, sizes, line counts and the few header
fields that BODYSTRUCTURE shows. Garbage has a structure too: what cannot be understood is text (RFC 2045 §5.2).
Offsets count from the first octet of the message's header block.
"""

import re
from base64 import b64decode
from binascii import Error as BinasciiError
from dataclasses import dataclass, field
from datetime import date
from quopri import decodestring
from typing import NamedTuple

from aimx.imap.grammar import MONTHS
from aimx.imap.response import nstring, string
from aimx.message.header import HeaderBlock, decode_text

MAX_DEPTH = 60
MAX_PARTS = 10_000
MAX_PART_HEADER = 64 * 1024
"""Octets of a part's header that are looked into; the rest counts only as length."""
MAX_DELIMITER = 1024
MAX_VALUE = 128 * 1024
"""Octets of one field that are looked into."""
MAX_PARAMETERS = 100
MAX_ADDRESSES = 2_000
MAX_FIELDS = 20

Parameters = tuple[tuple[bytes, bytes], ...]


class Content(NamedTuple):
    """What a part's header says about its body."""

    type: bytes = b"TEXT"
    subtype: bytes = b"PLAIN"
    parameters: Parameters = ((b"CHARSET", b"US-ASCII"),)
    id: bytes | None = None
    description: bytes | None = None
    encoding: bytes = b"7BIT"
    md5: bytes | None = None
    disposition: tuple[bytes, Parameters] | None = None
    language: tuple[bytes, ...] = ()
    location: bytes | None = None


@dataclass(slots=True)
class Part:
    """A message or a body part: header at `head`:`start`, content at `start`:`end`."""

    head: int
    start: int = 0
    end: int = 0
    lines: int = 0
    content: Content = field(default_factory=Content)
    multipart: bool = False
    children: list["Part"] = field(default_factory=list)
    embedded: "Part | None" = None
    """The message inside, for message/rfc822."""
    envelope: bytes | None = None
    """Written ENVELOPE, for a message inside."""


# --- scanning --------------------------------------------------------------------------------------------------------

_IN_HEADER = re.compile(rb"\n(?:\r?\n|--)")
_IN_BODY = re.compile(rb"\n--")


@dataclass(slots=True)
class _Open:
    """A part whose end is not seen yet. `newlines`: line ends before its content."""

    part: Part
    boundary: bytes | None = None
    shadowed: int | None = None
    """Where the same boundary was open further out."""
    newlines: int = 0
    digest: bool = False
    """Parts without a type are messages (RFC 2046 §5.1.5)."""


class Scanner:
    """Give it the message's header at once and its body in pieces of any size; `finish()` gives the root part."""

    def __init__(self, header: bytes) -> None:
        self._root = Part(head=0, start=len(header))
        self._stack = [_Open(self._root)]
        self._boundaries: dict[bytes, int] = {}
        self._parts = 1
        # The line end before the first line; it has no offset of its own when the header lacks one.
        self._buffer = b"\n"
        self._base = len(header) - 1  # offset of the buffer's first octet
        self._search = 0  # place in the buffer from which to look on
        self._counted = 1  # place in the buffer up to which line ends were counted
        self._newlines = 0
        self._head: list[bytes] | None = None  # the header under way
        self._head_from = 0
        self._head_size = 0
        self._opened(self._stack[0], HeaderBlock.parse(header)[0])

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        self._scan(final=False)

    def finish(self) -> Part:
        self._scan(final=True)
        end = self._base + len(self._buffer)
        self._count(len(self._buffer))
        while self._head is not None:
            self._header_ends(len(self._buffer), end)
        self._close(0, end, self._newlines)
        return self._root

    def _scan(self, final: bool) -> None:
        while self._head is not None or self._boundaries:
            pattern = _IN_BODY if self._head is None else _IN_HEADER
            found = pattern.search(self._buffer, self._search)
            if found is None:
                # The last octets may begin what the next piece completes.
                self._search = max(self._search, len(self._buffer) - 2)
                break
            if self._head is not None and not found[0].endswith(b"--"):
                self._header_ends(found.start() + 1, self._base + found.end())
                self._search = found.end() - 1
                continue
            line = found.start() + 1
            end = self._buffer.find(b"\n", line, line + MAX_DELIMITER)
            if end < 0 and not final and len(self._buffer) < line + MAX_DELIMITER:
                self._search = found.start()
                break
            self._search = end if end >= 0 else line
            self._delimiter(line, end if end >= 0 else min(line + MAX_DELIMITER, len(self._buffer)), end < 0)
        else:
            self._search = len(self._buffer)
        self._drop()

    def _drop(self) -> None:
        """Let go of what was looked at, but for the two octets that may be the line end before a delimiter."""
        keep = max(self._search - 2, 0)
        if not keep:
            return
        self._count(keep)
        if self._head is not None:
            self._collect(keep)
        self._buffer = self._buffer[keep:]
        self._base += keep
        self._search -= keep
        self._counted -= keep
        self._head_from = max(self._head_from - keep, 0)

    def _count(self, upto: int) -> None:
        if upto > self._counted:
            self._newlines += self._buffer.count(b"\n", self._counted, upto)
            self._counted = upto

    def _collect(self, upto: int) -> None:
        assert self._head is not None
        piece = self._buffer[self._head_from : upto][: max(MAX_PART_HEADER - self._head_size, 0)]
        self._head_size += len(piece)
        self._head.append(piece)
        self._head_from = max(upto, self._head_from)

    def _begin_header(self, place: int) -> None:
        self._head = []
        self._head_from = place
        self._head_size = 0

    def _header_ends(self, place: int, start: int) -> None:
        """The header under way ends before `place` in the buffer; content begins at offset `start`."""
        assert self._head is not None
        self._collect(place)
        header = HeaderBlock.parse(b"".join(self._head) + b"\r\n")[0]
        self._head = None
        entry = self._stack[-1]
        entry.part.start = start
        self._count(start - self._base)
        entry.newlines = self._newlines
        self._opened(entry, header)

    def _opened(self, entry: _Open, header: HeaderBlock) -> None:
        """A part's header is known: see what its content may be made of."""
        part = entry.part
        outer = self._stack[-2] if len(self._stack) > 1 else None
        part.content = content(header, digest=outer is not None and outer.digest)
        if outer is not None and outer.part.embedded is part:
            part.envelope = envelope(header)
        deeper = len(self._stack) < MAX_DEPTH and self._parts < MAX_PARTS
        if part.content.type == b"MULTIPART":
            boundary = _boundary(part.content)
            if not deeper or boundary is None:
                part.content = part.content._replace(type=b"TEXT", subtype=b"PLAIN")
                return
            part.multipart = True
            entry.boundary = boundary
            entry.digest = part.content.subtype == b"DIGEST"
            entry.shadowed = self._boundaries.get(boundary)
            self._boundaries[boundary] = len(self._stack) - 1
        elif is_message(part.content):
            if not deeper:
                part.content = part.content._replace(type=b"APPLICATION", subtype=b"OCTET-STREAM")
                return
            part.embedded = Part(head=part.start)
            self._parts += 1
            self._stack.append(_Open(part.embedded))
            self._begin_header(part.start - self._base)

    def _delimiter(self, line: int, end: int, cut: bool) -> None:
        """A line that begins with `--`, at `line`:`end` in the buffer. `cut`: it has no line end (yet)."""
        text = self._buffer[line + 2 : end].rstrip(b" \t\r")
        if cut and end - line >= MAX_DELIMITER:
            return
        level = self._boundaries.get(text)
        last = level is None and text.endswith(b"--")
        if last:
            level = self._boundaries.get(text[:-2])
        if level is None:
            return
        # The line end before a delimiter belongs to it (RFC 2046 §5.1.1).
        self._count(line)
        stop = line - (2 if self._buffer[line - 2 : line] == b"\r\n" else 1)
        while self._head is not None:
            self._header_ends(line, self._base + line)
        self._close(level + 1, self._base + stop, self._newlines - 1)
        self._head = None
        entry = self._stack[level]
        if last or self._parts >= MAX_PARTS:
            self._forget(entry)
            return
        child = Part(head=self._base + end + (0 if cut else 1))
        entry.part.children.append(child)
        self._parts += 1
        self._stack.append(_Open(child))
        self._begin_header(end + (0 if cut else 1))

    def _close(self, level: int, end: int, newlines: int) -> None:
        """End all parts from `level` of the stack on, innermost first.

        A part that ends where its content would begin stands a line end further; those around it reach as far.
        """
        while len(self._stack) > level:
            entry = self._stack.pop()
            entry.part.end = end = max(end, entry.part.start)
            entry.part.lines = max(newlines - entry.newlines, 0)
            self._forget(entry)

    def _forget(self, entry: _Open) -> None:
        if entry.boundary is None:
            return
        if entry.shadowed is None:
            self._boundaries.pop(entry.boundary, None)
        else:
            self._boundaries[entry.boundary] = entry.shadowed
        entry.boundary = None


def structure(header: bytes, body: bytes) -> Part:
    """The structure of a message at hand."""
    scanner = Scanner(header)
    scanner.feed(body)
    return scanner.finish()


def is_message(what: Content) -> bool:
    """A message inside that can be looked into: its encoding is none (RFC 2046 §5.2.1)."""
    return (
        what.type == b"MESSAGE"
        and what.subtype in (b"RFC822", b"GLOBAL")
        and what.encoding in (b"7BIT", b"8BIT", b"BINARY")
    )


def _boundary(what: Content) -> bytes | None:
    for name, value in what.parameters:
        if name == b"BOUNDARY":
            value = value.rstrip(b" \t")
            return value if 0 < len(value) <= MAX_DELIMITER - 10 else None
    return None


def locate(root: Part, path: tuple[int, ...]) -> Part | None:
    """The part a section's numbers name (RFC 3501 §6.4.5); the root for none."""
    part, is_whole = root, True
    for number in path:
        inside: Part | None = part if is_whole or part.multipart else part.embedded
        if inside is None:
            return None
        if inside.multipart:
            if number > len(inside.children):
                return None
            part = inside.children[number - 1]
        elif number == 1:
            part = inside  # a message that is no multipart has its content as part 1
        else:
            return None
        is_whole = False
    return part


# --- header values ---------------------------------------------------------------------------------------------------

_FOLD = re.compile(rb"\r*\n(?=[ \t])")
_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)(?:"|\\?\Z)|([^\x00-\x20()<>@,;:\\"/\[\]?=]++)|(\()|(.)', re.DOTALL)
_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_PARENTHESIS = re.compile(rb"\\.|[()]", re.DOTALL)


def raw_value(header: HeaderBlock, name: str) -> bytes | None:
    """The first such field, unfolded and trimmed, its octets as they are; None when absent."""
    for raw in header.raw_fields(name):
        return _unfolded(raw)
    return None


def _unfolded(raw: bytes) -> bytes:
    value = raw[raw.index(b":") + 1 :][:MAX_VALUE]
    return _FOLD.sub(b"", value).strip(b" \t\r\n").replace(b"\0", b"")


def content(header: HeaderBlock, digest: bool = False) -> Content:
    """What the Content-* fields say (RFC 2045, 2183, 3282, 2557), with defaults for what they do not."""
    typed = raw_value(header, "content-type")
    kind, parameters = _parameterised(typed) if typed else (b"", ())
    main, slash, sub = kind.upper().partition(b"/")
    if not (main and slash and sub):
        main, sub = (b"MESSAGE", b"RFC822") if digest and not typed else (b"TEXT", b"PLAIN")
        parameters = () if main == b"MESSAGE" else Content().parameters
    encoding = raw_value(header, "content-transfer-encoding")
    disposed = raw_value(header, "content-disposition")
    disposition = _parameterised(disposed) if disposed else None
    language = raw_value(header, "content-language") or b""
    return Content(
        main,
        sub,
        parameters,
        raw_value(header, "content-id"),
        raw_value(header, "content-description"),
        _first_token(encoding).upper() or b"7BIT",
        raw_value(header, "content-md5"),
        disposition if disposition and disposition[0] else None,
        tuple(tag for tag in (tag.strip() for tag in language.split(b",")[:MAX_PARAMETERS]) if tag),
        raw_value(header, "content-location"),
    )


def _first_token(value: bytes | None) -> bytes:
    return _parameterised(value)[0] if value else b""


def _parameterised(value: bytes) -> tuple[bytes, Parameters]:
    """`main; name=value; …` with comments taken out; what is malformed is skipped to the next semicolon."""
    pieces: list[list[bytes]] = [[]]
    place, size = 0, len(value)
    while place < size:
        found = _TOKEN.match(value, place)
        assert found is not None  # the last alternative takes anything
        place = found.end()
        quoted, atom, comment, other = found.groups()
        if comment:
            place = _comment_end(value, place)
        elif quoted is not None:
            pieces[-1].append(_PAIR.sub(rb"\1", quoted))
        elif atom is not None:
            pieces[-1].append(atom)
        elif other == b";":
            if len(pieces) > MAX_PARAMETERS:
                break
            pieces.append([])
        elif other not in b" \t\r\n":
            pieces[-1].append(other)
    main = b"".join(pieces[0])
    parameters = [
        (piece[0].upper(), b"".join(piece[2:])) for piece in pieces[1:] if len(piece) > 2 and piece[1] == b"="
    ]
    return main, tuple(parameters)


def _comment_end(value: bytes, place: int) -> int:
    """The place after the comment whose parenthesis is just before `place`; the end when it does not close."""
    depth = 1
    for found in _PARENTHESIS.finditer(value, place):
        if found[0] == b"(":
            depth += 1
        elif found[0] == b")":
            depth -= 1
            if not depth:
                return found.end()
    return len(value)


# --- ENVELOPE --------------------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """As ENVELOPE lists it (RFC 3501 §7.4.2). A group begins with only `mailbox`, its name, and ends with nothing."""

    name: bytes | None
    mailbox: bytes | None
    host: bytes | None


_ADDRESS_TOKEN = re.compile(
    rb'"((?:[^"\\]++|\\.)*+)(?:"|\\?\Z)|(\[[^\]]*+\]?)|([^\x00-\x20()<>@,;:"\[]++)|(\s++)|(.)', re.DOTALL
)


class _Addresses:
    """Reads an address list of any quality: what was gathered so far, and what the next token makes of it."""

    def __init__(self) -> None:
        self.found: list[Address] = []
        self._clear()
        self._in_group = False

    def _clear(self) -> None:
        self._phrase: list[list[bytes]] = []  # words, each of the pieces that stand together
        self._glue = False  # the next word belongs to the last one: no white space between
        self._local: bytes | None = None
        self._angle: bytes | None = None
        self._comment: bytes | None = None
        self._in_angle = False

    def word(self, text: bytes) -> None:
        if self._glue and self._phrase:
            self._phrase[-1].append(text)
        else:
            self._phrase.append([text])
        self._glue = True

    def space(self) -> None:
        self._glue = False

    def comment(self, text: bytes) -> None:
        self._comment = text
        self._glue = False

    def special(self, char: bytes) -> None:
        match char:
            case b"<":
                self._angle = self._joined() if self._local is None else self._local + b"@" + self._text()
                self._phrase, self._local, self._in_angle, self._glue = [], None, True, False
            case b">":
                self._in_angle, self._glue = False, False
            case b"@":
                if self._in_angle and not self._phrase:
                    self._glue = True  # a route: it ends with its colon (RFC 5322 §4.4)
                elif self._local is None:
                    self._local, self._phrase, self._glue = self._text(), [], False
                else:
                    self.word(b"@")
            case b":" if self._in_angle:
                self._phrase, self._local, self._glue = [], None, False
            case b":":
                self.found.append(Address(None, self._joined(), None))
                self._clear()
                self._in_group = True
            case b",":
                if not self._in_angle:
                    self.end()
            case b";":
                self.end()
                if self._in_group:
                    self.found.append(Address(None, None, None))
                    self._in_group = False
            case _:
                self.word(char)

    def _text(self) -> bytes:
        return b"".join(map(b"".join, self._phrase))

    def _joined(self) -> bytes:
        return b" ".join(map(b"".join, self._phrase))

    def end(self) -> None:
        """An address is complete; an empty one is none."""
        if self._phrase or self._local is not None or self._angle is not None:
            name = self._angle if self._angle else self._comment
            # A host must be a string: NIL would make a group of it.
            mailbox, host = (self._joined(), b"") if self._local is None else (self._local, self._text())
            self.found.append(Address(name, mailbox, host))
        self._clear()

    def finish(self) -> list[Address]:
        self.end()
        if self._in_group:
            self.found.append(Address(None, None, None))
        return self.found


def addresses(value: bytes) -> list[Address]:
    """The addresses of an unfolded field value, groups included."""
    reader = _Addresses()
    place, size = 0, len(value)
    while place < size and len(reader.found) < MAX_ADDRESSES:
        found = _ADDRESS_TOKEN.match(value, place)
        assert found is not None  # the last alternative takes anything
        place = found.end()
        quoted, literal, atom, space, other = found.groups()
        if quoted is not None:
            reader.word(_PAIR.sub(rb"\1", quoted))
        elif literal is not None or atom is not None:
            reader.word(literal or atom)
        elif space is not None:
            reader.space()
        elif other == b"(":
            end = _comment_end(value, place)
            reader.comment(_PAIR.sub(rb"\1", value[place : max(end - 1, place)]).strip())
            place = end
        else:
            reader.special(other)
    return reader.finish()


def envelope(header: HeaderBlock) -> bytes:
    """The written ENVELOPE: date, subject, from, sender, reply-to, to, cc, bcc, in-reply-to, message-id."""
    from_ = _address_list(header, "from")
    lists = [
        from_,
        _address_list(header, "sender") or from_,
        _address_list(header, "reply-to") or from_,
        # Of these there should be one (RFC 5322 §3.6); where there are more, an answer to all still reaches all.
        *(_address_list(header, name, most=MAX_FIELDS) for name in ("to", "cc", "bcc")),
    ]
    values = [
        nstring(raw_value(header, "date")),
        nstring(raw_value(header, "subject")),
        *(written or b"NIL" for written in lists),
        nstring(raw_value(header, "in-reply-to")),
        nstring(raw_value(header, "message-id")),
    ]
    return b"(" + b" ".join(values) + b")"


def _address_list(header: HeaderBlock, name: str, most: int = 1) -> bytes:
    found: list[Address] = []
    for raw in header.raw_fields(name)[:most]:
        if len(found) < MAX_ADDRESSES:
            found += addresses(_unfolded(raw))
    if not found:
        return b""
    return b"(%b)" % b"".join(b"(%b NIL %b %b)" % (nstring(a.name), nstring(a.mailbox), nstring(a.host)) for a in found)


# --- BODY and BODYSTRUCTURE ------------------------------------------------------------------------------------------

_NO_PART = Part(head=0)
"""What a multipart without parts is said to hold, since the grammar demands one."""


def body_structure(part: Part, extended: bool) -> bytes:
    """BODYSTRUCTURE, or BODY when not `extended` (RFC 3501 §7.4.2). As deep as the scanner let parts nest."""
    what = part.content
    if part.multipart:
        inner = b"".join(body_structure(child, extended) for child in part.children or [_NO_PART])
        tail = b" " + _parameters(what.parameters) + _disposition_and_on(what) if extended else b""
        return b"(" + inner + b" " + string(what.subtype) + tail + b")"
    fields = [
        string(what.type),
        string(what.subtype),
        _parameters(what.parameters),
        nstring(what.id),
        nstring(what.description),
        string(what.encoding),
        b"%d" % (part.end - part.start),
    ]
    if part.embedded is not None:
        fields += [part.embedded.envelope or envelope(HeaderBlock([])), body_structure(part.embedded, extended)]
    if part.embedded is not None or what.type == b"TEXT":
        fields.append(b"%d" % part.lines)
    tail = b" " + nstring(what.md5) + _disposition_and_on(what) if extended else b""
    return b"(" + b" ".join(fields) + tail + b")"


def _parameters(parameters: Parameters) -> bytes:
    if not parameters:
        return b"NIL"
    return b"(" + b" ".join(string(name) + b" " + string(value) for name, value in parameters) + b")"


def _disposition_and_on(what: Content) -> bytes:
    disposition = b"NIL"
    if what.disposition is not None:
        kind, parameters = what.disposition
        disposition = b"(" + string(kind) + b" " + _parameters(parameters) + b")"
    language = b"NIL"
    if what.language:
        language = b"(" + b" ".join(string(tag) for tag in what.language) + b")"
    return b" " + disposition + b" " + language + b" " + nstring(what.location)


# --- for SEARCH ------------------------------------------------------------------------------------------------------

_DAY = re.compile(r"(?<![0-9])([0-9]{1,2})[ \t]+([A-Za-z]{3})[A-Za-z]{0,6}[ \t]+([0-9]{4}|[0-9]{2})(?![0-9])")
_MONTH_NUMBER = {name.lower(): number for number, name in enumerate(MONTHS, 1)}


def sent_day(header: HeaderBlock) -> int | None:
    """The day of the Date field as proleptic ordinal, time and zone disregarded (RFC 3501 §6.4.4)."""
    value = raw_value(header, "date")
    found = _DAY.search(value[:200].decode("latin-1")) if value else None
    if found is None:
        return None
    year = int(found[3])
    if len(found[3]) == 2:
        year += 2000 if year < 50 else 1900  # RFC 5322 §4.3
    try:
        return date(year, _MONTH_NUMBER[found[2].lower()], int(found[1])).toordinal()
    except (KeyError, ValueError):
        return None


def text_of(header: bytes, body: bytes) -> str:
    """What SEARCH BODY looks through: the body as it stands and every textual part decoded; case-folded."""
    texts = [body.decode("utf-8", "replace")]
    pending = [structure(header, body)]
    while pending:
        part = pending.pop()
        pending += part.children
        if part.embedded is not None:
            pending.append(part.embedded)
        elif not part.multipart:
            texts.append(_decoded(part.content, body[part.start - len(header) : part.end - len(header)]))
    return "\n".join(texts).casefold()


def _decoded(what: Content, octets: bytes) -> str:
    """A part's text where its encoding or charset hides it; empty where the raw octets say the same."""
    if what.type != b"TEXT" and not what.subtype.endswith((b"JSON", b"XML")):
        return ""
    charset = next((value for name, value in what.parameters if name == b"CHARSET"), b"utf-8").decode("latin-1").lower()
    if what.encoding == b"BASE64":
        try:
            octets = b64decode(octets)
        except (BinasciiError, ValueError):
            return ""
    elif what.encoding == b"QUOTED-PRINTABLE":
        octets = decodestring(octets)
    elif charset in ("utf-8", "us-ascii"):
        return ""
    return decode_text(octets, charset)
