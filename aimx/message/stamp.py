"""Header lines as AIMX writes them: whole lines as bytes, CRLF included, ready for `HeaderBlock.prepend`.

Trace headers are never RFC 2047 encoded: a list folds between its members instead. A value with a line break is an
error of ours (ValueError), never a second header.
"""

import re
import time
from base64 import b64encode
from collections.abc import Sequence

_SOFT = 78
"""RFC 5322 §2.1.1: a line should not be longer than this, without CRLF."""
_UNSAFE = re.compile(r"[\r\n\0]")
_NOT_ATOM = re.compile(r"[^!-'*-:=?-~\u0080-\uffff]")
_NOT_COMMENT = re.compile(r"[^ -'*-\[\]-~]")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def line(name: str, value: str) -> bytes:
    """`Name: value`, folded at spaces where it is long; other than ASCII as RFC 2047 words."""
    _refuse(value)
    if not value.isascii():
        return fold(name, _encoded_words(value), separator=" ")
    if len(name) + 2 + len(value) <= _SOFT:
        return f"{name}: {value}\r\n".encode()
    return fold(name, value.split(" "), separator=" ")


def fold(name: str, members: Sequence[str], separator: str = ", ") -> bytes:
    """`Name: a, b, c` with line breaks after separators only; a member is never broken."""
    _refuse("".join(members))
    mark = separator.rstrip(" ")
    last = len(members) - 1
    lines: list[str] = []
    line, gap = f"{name}:", " "
    for i, member in enumerate(members):
        piece = member if i == last else member + mark
        # An empty member at a fold would leave a line of white space only, which RFC 5322 §3.2.2 forbids to write.
        if len(line) + len(gap) + len(piece) > _SOFT and i and member.strip():
            lines.append(line)
            line = " " + piece
        else:
            line += gap + piece
        gap = separator[len(mark) :]
    lines.append(line + "\r\n")
    return "\r\n".join(lines).encode()


def date(t_ms: int) -> str:
    """RFC 5322 §3.3 date-time in UTC. Locale plays no part."""
    t = time.gmtime(t_ms / 1000)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04d} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} +0000"
    )


def received(
    *,
    helo: str,
    peer: str,
    by: str,
    protocol: str,
    eid: str,
    t_ms: int,
    rcpt: str | None = None,
    tls: str | None = None,
) -> bytes:
    """A `Received` field (RFC 5321 §4.4; protocol names of RFC 3848, such as ESMTPSA).

    `helo` is what the peer called itself, `peer` its address. Give `rcpt` only when there is one recipient:
    with more, "for" would tell each who else got it (§7.2).
    """
    clauses = [f"from {_atom(helo)} ([{_atom(peer)}])", f"by {_atom(by)}"]
    if tls:
        clauses.append(f"(using {_comment(tls)})")
    clauses.append(f"with {_atom(protocol)} id {_atom(eid)}")
    if rcpt is not None:
        clauses.append(f"for <{_refuse(rcpt)}>")
    clauses[-1] += ";"
    clauses.append(date(t_ms))
    return fold("Received", clauses, separator=" ")


def _atom(value: str) -> str:
    """A word of a peer's choosing, made harmless: no space, no comment, no line break."""
    return _NOT_ATOM.sub("?", value)[:255] or "unknown"


def _comment(value: str) -> str:
    return _NOT_COMMENT.sub("?", value)[:255]


def _refuse(value: str) -> str:
    if _UNSAFE.search(value):
        raise ValueError("a header value holds a line break or NUL")
    return value


def _encoded_words(value: str) -> list[str]:
    """RFC 2047 §2 words of at most 75 characters, never splitting a character."""
    words: list[str] = []
    chunk = b""
    for char in value:
        encoded = char.encode("utf-8", "replace")
        if len(chunk) + len(encoded) > 42:  # 42 bytes are 56 of base 64, 68 with the frame
            words.append(_word(chunk))
            chunk = b""
        chunk += encoded
    words.append(_word(chunk))
    return words


def _word(chunk: bytes) -> str:
    return f"=?utf-8?b?{b64encode(chunk).decode()}?="
