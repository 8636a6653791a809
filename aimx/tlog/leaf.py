"""Leaves: canonical JSON, and the commitments by which a leaf binds what it does not show.

A commitment is HMAC-SHA256(k, "aimx/v1/" ‖ part ‖ 00 ‖ value) with a key of 32 random octets. Whoever is given k and
the value (an *opening*) can check it; when k is erased nobody can guess the value, however little entropy it has.
"""

import hmac
import json
import os
from binascii import b2a_base64
from collections.abc import Callable
from hashlib import sha256

from aimx.tlog.errors import ProofError

KEY_SIZE = 32
"""HMAC pads short keys with zeros, so keys of varying length would not bind; ours are always 32 octets."""


def new_key() -> bytes:
    """A key for the commitments of one message or event."""
    return os.urandom(KEY_SIZE)


def commit(key: bytes, part: str, value: bytes) -> str:
    """The commitment to `value` as the `part` of a leaf, as base64."""
    return committer(key)(part, value)


def committer(key: bytes) -> Callable[[str, bytes], str]:
    """`commit` for many values under one key.

    HMAC written out (RFC 2104 §2): on 16 to 40 octets that costs half of what a call into the hmac module does, and an
    accepted message's leaf holds seven.
    """
    if len(key) != KEY_SIZE:
        raise ValueError("a commitment key has 32 octets")
    inner, outer = key.translate(_INNER) + _INNER_REST, key.translate(_OUTER) + _OUTER_REST

    def commit_to(part: str, value: bytes) -> str:
        prefix = _prefixes.get(part) or _prefixes.setdefault(part, b"aimx/v1/" + part.encode() + b"\x00")
        digest = sha256(outer + sha256(inner + prefix + value).digest()).digest()
        return b2a_base64(digest, newline=False).decode()

    return commit_to


_INNER, _OUTER = bytes(octet ^ 0x36 for octet in range(256)), bytes(octet ^ 0x5C for octet in range(256))
_INNER_REST, _OUTER_REST = b"\x36" * (64 - KEY_SIZE), b"\x5c" * (64 - KEY_SIZE)
_prefixes: dict[str, bytes] = {}
"""Grows with the catalogue of events, not with what is logged."""


def open_commitment(key: bytes, part: str, value: bytes, commitment: str) -> None:
    """Raises ProofError unless `commitment` is to this value."""
    if not hmac.compare_digest(commit(key, part, value), commitment):
        raise ProofError(f"the value is not the one the leaf commits to as {part}")


def fold_values(values: list[bytes]) -> bytes:
    """One value for a long list: SHA-256 over each value's SHA-256, so that no boundary can be moved."""
    return sha256(b"".join(sha256(value).digest() for value in values)).digest()


def canonical(fields: dict[str, object]) -> bytes:
    """The octets of a leaf: sorted ASCII keys, no spaces, UTF-8. For strings, integers below 2^53, booleans, null,
    lists and dictionaries of these the result equals RFC 8785's. Verifiers hash stored octets and never re-encode."""
    return _encode(fields).encode()


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
