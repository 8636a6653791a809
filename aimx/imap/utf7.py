"""Mailbox names on the wire: modified UTF-7 (RFC 3501 §5.1.3), in linear time and with clean errors.

Printable US-ASCII stands for itself, `&` is `&-`, anything else is UTF-16BE in modified BASE64 between `&` and `-`.
"""

import base64
import binascii


class BadName(ValueError):
    """The octets are no modified UTF-7, or not the one spelling that a name has."""


def decode(raw: bytes) -> str:
    """The name behind `raw`; raises BadName for anything a careful client would not have sent."""
    out: list[str] = []
    at = 0
    while (shift := raw.find(b"&", at)) >= 0:
        end = raw.find(b"-", shift)
        if end < 0:
            raise BadName("mailbox name has a shift that does not end")
        out.append(_direct(raw[at:shift]))
        out.append(_unshift(raw[shift + 1 : end]) if end > shift + 1 else "&")
        at = end + 1
    out.append(_direct(raw[at:]))
    name = "".join(out)
    # What can stand for itself must, and shifts may not follow one another (RFC 3501 §5.1.3): one name, one spelling.
    if encode(name) != raw:
        raise BadName("mailbox name is not in its canonical form")
    return name


def _direct(octets: bytes) -> str:
    text = octets.decode("latin-1")
    if not (text.isascii() and text.isprintable()):
        raise BadName("mailbox name holds octets that are not printable US-ASCII")
    return text


def _unshift(shifted: bytes) -> str:
    try:
        octets = base64.b64decode(shifted.replace(b",", b"/") + b"=" * (-len(shifted) % 4), validate=True)
        return octets.decode("utf-16-be")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise BadName("mailbox name holds bad BASE64 or bad UTF-16") from error


def _shift(text: list[str]) -> bytes:
    octets = "".join(text).encode("utf-16-be")
    return b"&" + base64.b64encode(octets).rstrip(b"=").replace(b"/", b",") + b"-"


def encode(name: str) -> bytes:
    """`name` as modified UTF-7; `decode(encode(name)) == name` for every name without lone surrogates."""
    out: list[bytes] = []
    held: list[str] = []
    for char in name:
        if not " " <= char <= "~":
            held.append(char)
            continue
        if held:
            out.append(_shift(held))
            held.clear()
        out.append(b"&-" if char == "&" else char.encode("ascii"))
    if held:
        out.append(_shift(held))
    return b"".join(out)
