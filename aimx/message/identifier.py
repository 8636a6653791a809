"""Identifiers: event and message ids (ULID), and Message-IDs that carry a trace through servers which strip headers.

A minted Message-ID reads `<trace.span.nonce.mac@domain>`, all lowercase hex: the trace can be read off in any mail
log, the nonce keeps two messages of one span apart, and the MAC (HMAC-SHA-256, 64 bits kept) proves that we wrote it.
A valid MAC says only "this context was ours"; who may continue it is for the caller to decide.
"""

import hmac
import os
import re
import time
from collections.abc import Callable
from threading import Lock

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32, as the ULID specification demands
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_RANDOM_BITS = 80
_RANDOM_SPACE = 1 << _RANDOM_BITS

_MINTED = re.compile(r"<?([0-9a-f]{32})\.([0-9a-f]{16})\.([0-9a-f]{8})\.([0-9a-f]{16})@([!-~]{1,255}?)>?", re.ASCII)
_DRAWN = re.compile(r"<[0-7][0-9a-hjkmnp-tv-z]{25}(@[!-;=?-~]{1,255})>", re.ASCII)
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,996}>")

_lock = Lock()
_last_ms = -1
_last_random = 0
_last_prefix = ""


def new_eid(t_ms: int | None = None) -> str:
    """A ULID, 26 characters. Ids of one process sort in the order they were made, also when the clock steps back."""
    global _last_ms, _last_random, _last_prefix
    now = time.time_ns() // 1_000_000 if t_ms is None else t_ms
    with _lock:
        if now > _last_ms:
            _last_ms, _last_prefix = now, _base32(now, 5)
            # The top bit starts as 0: within one millisecond there is always room to count up.
            _last_random = int.from_bytes(os.urandom(10), "big") >> 1
        else:
            # Steps are random, not 1: an id seen by one agent must not tell the next one's.
            _last_random += 1 + int.from_bytes(os.urandom(4), "big")
            if _last_random >= _RANDOM_SPACE:
                _last_ms, _last_random = _last_ms + 1, int.from_bytes(os.urandom(10), "big") >> 1
                _last_prefix = _base32(_last_ms, 5)
        prefix, value = _last_prefix, _last_random
    return prefix + _base32(value, 8)


def eid_time_ms(eid: str) -> int:
    """Unix milliseconds in a ULID. ValueError when it is none."""
    if len(eid) != 26:
        raise ValueError("not a ULID")
    value = 0
    for char in eid[:10].upper():
        value = value << 5 | _ALPHABET.index(char)
    return value


def mint(trace_id: bytes, span_id: bytes, domain: str, key: bytes, nonce: bytes | None = None) -> str:
    """A Message-ID, angle brackets included, unique also among messages of one span."""
    nonce = os.urandom(4) if nonce is None else nonce
    mac = _mac(trace_id, span_id, nonce, domain, key)
    return f"<{trace_id.hex()}.{span_id.hex()}.{nonce.hex()}.{mac.hex()}@{domain}>"


def unmint(message_id: str, key: bytes) -> tuple[bytes, bytes] | None:
    """(trace id, span id) of a Message-ID that this key minted; None for every other."""
    match = _MINTED.fullmatch(message_id.strip())
    if match is None:
        return None
    trace_id, span_id, nonce, mac = (bytes.fromhex(part) for part in match.groups()[:4])
    if not hmac.compare_digest(mac, _mac(trace_id, span_id, nonce, match.group(5), key)):
        return None
    return trace_id, span_id


def is_drawn(message_id: str, serves: Callable[[str], bool]) -> bool:
    """Whether it is an SDK's: a ULID at a domain that `serves` knows, whose 80 random bits cannot be guessed.

    Like a minted one it can only be named by who has read it, though nothing proves who drew it.
    """
    match = _DRAWN.fullmatch(message_id.strip())
    return match is not None and serves(f"x{match[1]}")


def message_ids(value: str | None) -> list[str]:
    """The `<…>` ids in a Message-ID, In-Reply-To or References value, in order; garbage between them is skipped."""
    return _MESSAGE_ID.findall(value) if value else []


def _mac(trace_id: bytes, span_id: bytes, nonce: bytes, domain: str, key: bytes) -> bytes:
    # Lengths are fixed but for the domain, which comes last: no two inputs give the same bytes.
    data = b"aimx/message-id/v1\0" + trace_id + span_id + nonce + domain.lower().encode()
    return hmac.digest(key, data, "sha256")[:8]


def _base32(value: int, pairs: int) -> str:
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(10 * (pairs - 1), -1, -10)])
