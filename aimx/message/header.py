"""The header block of a message: parsed once, in one linear pass, without ever losing a byte.

A field is kept as the bytes that arrived; text is made of it only when somebody asks. Interpreting garbage must never
lose a mail, so nothing here raises on what a peer sent: a line that is no field is kept as a field without a name.

Where the block ends: at the first empty line; in a message without one, before the first line that is neither field
nor continuation. A line ends with LF (CRLF or bare); a bare CR is content.
"""

import re
from base64 import b64decode
from binascii import Error as BinasciiError
from codecs import lookup
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from quopri import decodestring
from typing import NamedTuple

MAX_HEADER_BYTES = 1 << 20
"""When no empty line comes by then, `HeaderBlock.overlong` says so: refuse such a message."""

# One logical line, and in it a name if it has one: name and colon, the rest, its continuations. Every repetition is
# possessive and every branch consumes, so matching is linear whatever the input. Field names: RFC 5322 §2.2; space
# before colon: §4.5.
_LINE = re.compile(rb"((?:([!-9;-~]++)[ \t]*+:)?+[^\n]*+(?:\n[ \t][^\n]*+)*+\n?+)")
_FOLD = re.compile(r"\r*\n(?=[ \t])")
# RFC 2047 §2. Classes exclude the delimiters, so a failed match costs no more than the text up to the next "?".
_WORD = re.compile(r"=\?([^?\s]{1,64})\?([bBqQ])\?([^?\s]*+)\?=")
_GAP = re.compile(r"(\?=)[ \t]++(?==\?[^?\s]{1,64}\?[bBqQ]\?)")
# Text codecs that are slow, or that are no character set of a mail.
_NO_CHARSET = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})


class Field(NamedTuple):
    """One field as it stands in the message."""

    name: bytes
    """Lower-cased; empty for a line that is no field."""
    raw: bytes
    """Exact bytes: name, colon, value, continuations and line end."""

    @property
    def value(self) -> bytes:
        """What follows the colon, still folded, without the line end."""
        return self.raw[self.raw.index(b":") + 1 :].rstrip(b"\r\n") if self.name else b""


class HeaderBlock:
    """The fields in order. `to_bytes()` followed by the body is the message again, byte for byte."""

    __slots__ = ("_index", "_opens_with_space", "fields", "overlong", "separator")

    def __init__(self, fields: list[Field], separator: bytes = b"\r\n", *, overlong: bool = False) -> None:
        self.fields = fields
        self.separator = separator
        """The empty line that ended the block; empty when the message has none."""
        self.overlong = overlong
        self._opens_with_space = bool(fields) and fields[0].raw[:1] in (b" ", b"\t")
        self._index: dict[bytes, list[Field]] | None = None

    @classmethod
    def parse(cls, data: bytes, *, limit: int = MAX_HEADER_BYTES) -> tuple["HeaderBlock", int]:
        """The block and the offset where the body begins (after the empty line)."""
        end, body = _block_end(data, limit)
        if end >= 0:
            return cls(
                [Field(name.lower(), raw) for raw, name in _LINE.findall(data, 0, end) if raw], data[end:body]
            ), body
        # No empty line within the limit: the fields go as far as lines look like fields.
        fields: list[Field] = []
        pos, size = 0, min(len(data), limit)
        while pos < size:
            line = _LINE.match(data, pos)
            if line is None or line.group(2) is None:
                break
            fields.append(Field(line.group(2).lower(), line.group()))
            pos = line.end()
        block = cls(fields, b"", overlong=len(data) > limit)
        block._opens_with_space = data[:1] in (b" ", b"\t")
        return block, pos

    def get(self, name: str) -> str | None:
        """Text of the first field of that name: unfolded, RFC 2047 words decoded; None when absent."""
        found = self._named(name)
        return text(found[0].value) if found else None

    def get_all(self, name: str) -> list[str]:
        """Text of every field of that name, in order."""
        return [text(field.value) for field in self._named(name)]

    def structured(self, name: str) -> list[str]:
        """As `get_all`, but RFC 2047 words stand as they came: a field with a grammar, such as From, is taken apart
        before its words are decoded (RFC 2047 §5), else a word could hold an address or a comment."""
        return [_unfolded(field.value) for field in self._named(name)]

    def count(self, name: str) -> int:
        return len(self._named(name))

    def __contains__(self, name: str) -> bool:
        return bool(self._named(name))

    def raw_fields(self, name: str | None = None) -> list[bytes]:
        """Exact bytes of every field (of that name), line ends included."""
        return [field.raw for field in (self.fields if name is None else self._named(name))]

    def strip(self, predicate: Callable[[bytes], bool]) -> list[Field]:
        """Take out the fields whose lower-cased name satisfies `predicate`; returns what was taken."""
        gone = {name for name in {field.name for field in self.fields} if name and predicate(name)}
        if not gone:
            return []
        taken = [field for field in self.fields if field.name in gone]
        self.replace([field for field in self.fields if field.name not in gone])
        return taken

    def replace(self, fields: list[Field]) -> None:
        """Keep these fields only."""
        self.fields = fields
        self._index = None

    def prepend(self, lines: Iterable[bytes]) -> None:
        """Put whole lines (name, colon, value, CRLF; already folded) on top, the first of them topmost."""
        added = [Field(line.partition(b":")[0].lower(), line) for line in lines]
        if added and self._opens_with_space:
            # A message that opens with white space would become a continuation of our last line.
            # A field of its own takes the blame, so that no stranger can lengthen a field of ours.
            added.append(Field(b"aimx-defect", b"AIMX-Defect: leading-space\r\n"))
            self._opens_with_space = False
        self.fields[:0] = added
        self._index = None

    def to_bytes(self) -> bytes:
        """The block with the empty line that ends it, if there was one."""
        return b"".join([field.raw for field in self.fields]) + self.separator

    def _named(self, name: str) -> Sequence[Field]:
        index = self._index
        if index is None:
            index = self._index = {}
            for field in self.fields:
                if field.name:
                    index.setdefault(field.name, []).append(field)
        return index.get(_key(name), ())


@lru_cache(256)
def _key(name: str) -> bytes:
    """As fields are named: mostly it is the same few names that are asked for."""
    return name.lower().encode()


def text(value: bytes) -> str:
    """Unstructured text of a raw field value: unfolded (RFC 5322 §2.2.3), RFC 2047 words decoded, stripped.

    NUL becomes U+FFFD, since neither people nor SQL text columns take it.
    """
    plain = _unfolded(value)
    if "=?" in plain:
        plain = _WORD.sub(_decode_word, _GAP.sub(r"\1", plain))
        plain = _without_nul(plain).strip(" \t\r\n")  # a word may hold what is not to be there
    return plain


def _unfolded(value: bytes) -> str:
    plain = value.decode("utf-8", "replace")
    if "\n" in plain:
        plain = _FOLD.sub("", plain)
    return _without_nul(plain).strip(" \t\r\n")


def _without_nul(plain: str) -> str:
    return plain.replace("\0", "\ufffd") if "\0" in plain else plain


def bare(value: str) -> str:
    """A value with a grammar (RFC 5322 §3.2): each comment a space, quotes undone. Linear; ends however it was meant.

    >>> bare('planner@(to whom it may concern)"fabric".local')
    'planner@ fabric.local'
    """
    plain: list[str] = []
    depth, quoted, at = 0, False, 0
    while at < len(value):
        char = value[at]
        at += 1
        if char == "\\":
            char = value[at : at + 1]
            at += 1
        elif char == '"' and not depth:
            quoted = not quoted
            continue
        elif not quoted and char in "()":
            depth = max(0, depth + (1 if char == "(" else -1))
            char = " "
        if not depth:
            plain.append(char)
    return "".join(plain)


def decode_text(value: bytes, charset: str = "utf-8") -> str:
    """Characters of bytes whose charset is claimed or guessed; never fails (RFC 6532 makes UTF-8 the guess)."""
    if charset == "utf-8":
        return value.decode("utf-8", "replace")
    try:
        codec = lookup(charset.partition("*")[0])  # RFC 2231 §5 allows a language after "*"
        if getattr(codec, "_is_text_encoding", True) and codec.name not in _NO_CHARSET:
            # Some codecs (UTF-7) let lone surrogates through, which nothing behind us could encode again.
            return value.decode(codec.name, "replace").encode("utf-8", "replace").decode()
    except (LookupError, ValueError):
        pass
    return value.decode("utf-8", "replace")


def _decode_word(match: re.Match[str]) -> str:
    charset, encoding, payload = match.groups()
    raw = payload.encode("utf-8", "replace")
    try:
        data = b64decode(raw + b"=" * (-len(raw) % 4)) if encoding in "bB" else decodestring(raw, header=True)
    except (BinasciiError, ValueError):
        return match.group()
    return decode_text(data, charset.lower())


def _block_end(data: bytes, limit: int) -> tuple[int, int]:
    """Offsets where the fields end and the body begins; (-1, -1) when no empty line lies within `limit`."""
    if data.startswith(b"\r\n"):
        return 0, 2
    if data.startswith(b"\n"):
        return 0, 1
    crlf = data.find(b"\n\r\n", 0, limit)
    bare = data.find(b"\n\n", 0, limit if crlf < 0 else crlf + 1)
    if bare >= 0:
        return bare + 1, bare + 2
    if crlf >= 0:
        return crlf + 1, crlf + 3
    return -1, -1
