"""Fingerprints of payloads for the loop guard: is this the same again, or the same but for numbers, times and ids?

Both look at the first 64 KiB and cost linear time.
"""

import re
from hashlib import sha256

LIMIT = 64 * 1024

# UUIDs may have groups without a digit; any other word that holds a digit is a number, a time, an id or a counter.
# Possessive repetitions and the look-behind keep it linear: no position inside a word is ever tried.
_VARIABLE = re.compile(
    rb"(?<![0-9A-Za-z])(?:"
    rb"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
    rb"|[A-Za-z]*+[0-9][0-9A-Za-z]*+"
    rb")(?![0-9A-Za-z])"
)
# What joins pieces of one date, number or id, once the pieces are gone: 2026-01-02T03:04:05.6+00:00, -1,234.5e-6.
_RUN = re.compile(rb"[+\-]?+#(?:[-+.,:/_ ]{1,2}#)*+")
_CALENDAR = re.compile(
    rb"(?<![0-9A-Za-z])(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*+,?+ |)"
    rb"#,? ?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*+,?+ ?#",
    re.IGNORECASE,
)
_SPACE = re.compile(rb"\s++")


def payload_hash(data: bytes) -> bytes:
    """32 bytes; equal for equal payloads. A longer payload is told by its beginning and its length."""
    return sha256(len(data).to_bytes(8, "big") + data[:LIMIT]).digest()


def template_hash(data: bytes) -> bytes:
    """32 bytes; equal also when only numbers, times, UUIDs, ids or white space differ."""
    return sha256(template(data)).digest()


def template(data: bytes) -> bytes:
    """The payload with everything variable written as `#`."""
    marked = _VARIABLE.sub(b"#", data[:LIMIT])
    return _SPACE.sub(b" ", _RUN.sub(b"#", _CALENDAR.sub(b"#", marked))).strip()
