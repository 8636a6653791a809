"""Fingerprints of payloads for the loop guard: is this the same again, or the same but for numbers, times and ids?

Both look at the first 64 KiB and cost linear time.
"""

import re
from hashlib import sha256

LIMIT = 64 * 1024

# A word that holds a digit is a number, a time, an id or a counter. Every pattern begins with a digit or with "#", so
# that the regular expression engine skips plain text as fast as it can; what stands *before* a digit is therefore
# looked for in the reversed text, where it stands behind.
_FROM_DIGIT = re.compile(rb"[0-9][0-9A-Za-z]*+")
_BEFORE_DIGIT = re.compile(rb"#[A-Za-z]++")
# What joins the pieces of one date, number or UUID: 2026-01-02 03:04:05.6+00:00, -1,234.5e-6, a UUID's letter group.
_RUN = re.compile(rb"#(?:[-+.,:/_ ]{1,2}#|-[A-Fa-f]{4}(?=-))*+[-+]?+")
# "2 Jan 2026", "May 3", "Monday, 2", each from its end.
_MONTH = re.compile(
    rb"# ?,?[a-z]{0,6}(?:naj|bef|ram|rpa|yam|nuj|luj|gua|pes|tco|von|ced)(?![a-z])(?: ?#)?", re.IGNORECASE
)
_WEEKDAY = re.compile(rb"# ?,?[a-z]{0,6}(?:nom|eut|dew|uht|irf|tas|nus)(?![a-z])", re.IGNORECASE)


def payload_hash(data: bytes) -> bytes:
    """32 bytes; equal for equal payloads. A longer payload is told by its beginning and its length."""
    return sha256(len(data).to_bytes(8, "big") + data[:LIMIT]).digest()


def template_hash(data: bytes) -> bytes:
    """32 bytes; equal also when only numbers, times, UUIDs, ids or white space differ."""
    return sha256(template(data)).digest()


def template(data: bytes) -> bytes:
    """The payload with everything variable written as `#`."""
    back = _FROM_DIGIT.sub(b"#", data[:LIMIT])[::-1]
    if b"#" in back:
        back = _RUN.sub(b"#", _BEFORE_DIGIT.sub(b"#", back))
        back = _WEEKDAY.sub(b"#", _RUN.sub(b"#", _MONTH.sub(b"#", back)))
    return b" ".join(back[::-1].split())
