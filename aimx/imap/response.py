"""How values are written on the wire: strings as quoted or literal, flags, dates, sets (RFC 3501 §7, §9)."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

from aimx.imap import utf7
from aimx.imap.grammar import MONTHS
from aimx.store.search import Ranges

_PLAIN_ATOM = re.compile(rb"[A-Za-z0-9._/&+,=$@#!?:;|~^'<>-]+")
_QUOTABLE = re.compile(rb'[^\x00\r\n"\\\x80-\xff]{0,1000}')
_ESCAPABLE = re.compile(rb"[^\x00\r\n\x80-\xff]{0,1000}")


def string(value: bytes) -> bytes:
    """Quoted where the octets allow it, else a literal. NUL, which neither can hold, is left out."""
    if _QUOTABLE.fullmatch(value):
        return b'"' + value + b'"'
    if _ESCAPABLE.fullmatch(value):
        return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    value = value.replace(b"\0", b"")
    return b"{%d}\r\n%b" % (len(value), value)


def nstring(value: bytes | None) -> bytes:
    return b"NIL" if value is None else string(value)


def mailbox(name: str) -> bytes:
    """A mailbox name in modified UTF-7."""
    encoded = utf7.encode(name)
    return encoded if _PLAIN_ATOM.fullmatch(encoded) and encoded.upper() != b"NIL" else string(encoded)


@lru_cache(maxsize=4096)
def flags(held: frozenset[str]) -> bytes:
    r"""Flags in parentheses, system flags first (`\` sorts below lower case, so say it)."""
    return b"(" + " ".join(sorted(held, key=lambda flag: (flag[0] != "\\", flag))).encode("ascii", "replace") + b")"


_FIRST = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_LAST = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())


def internal_date(t_ms: int) -> bytes:
    """`"01-Feb-2026 12:00:00 +0000"` for Unix milliseconds."""
    at = datetime.fromtimestamp(min(max(t_ms // 1000, _FIRST), _LAST), UTC)
    return f'"{at.day:2d}-{MONTHS[at.month - 1]}-{at.year:04d} {at:%H:%M:%S} +0000"'.encode("ascii")


def uid_set(uids: Iterable[int]) -> bytes:
    """The shortest set that lists ascending `uids` in order: `1:3,7`."""
    return b",".join(b"%d" % low if low == high else b"%d:%d" % (low, high) for low, high in ranges(uids))


def ranges(uids: Iterable[int]) -> Ranges:
    """Ascending numbers as inclusive ranges."""
    out: list[tuple[int, int]] = []
    low = high = -1
    for uid in uids:
        if uid != high + 1 or low < 0:
            if low >= 0:
                out.append((low, high))
            low = uid
        high = uid
    if low >= 0:
        out.append((low, high))
    return tuple(out)


def tagged(tag: bytes, word: str, text: str, code: str = "") -> bytes:
    """`a1 NO [CODE] text`; the text is ours, printable US-ASCII."""
    return b"%b %b %b\r\n" % (tag, word.encode("ascii"), (f"[{code}] {text}" if code else text).encode("ascii"))
