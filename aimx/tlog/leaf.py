"""Leaves: canonical JSON, and the commitments by which a leaf binds what it does not show.

A commitment is HMAC-SHA256(k, "aimx/v1/" ‖ part ‖ 00 ‖ value) with a key of 32 random octets. Whoever is given k and
the value (an *opening*) can check it; when k is erased nobody can guess the value, however little entropy it has.
"""

import base64
import hmac
import json
import os
from binascii import b2a_base64
from hashlib import sha256

from aimx.tlog.errors import ProofError

KEY_SIZE = 32
"""HMAC pads short keys with zeros, so keys of varying length would not bind; ours are always 32 octets."""


def new_key() -> bytes:
    """A key for the commitments of one message or event."""
    return os.urandom(KEY_SIZE)


def commit(key: bytes, part: str, value: bytes) -> str:
    """The commitment to `value` as the `part` of a leaf, as base64."""
    return b2a_base64(hmac.digest(key, b"aimx/v1/" + part.encode() + b"\x00" + value, "sha256"), newline=False).decode()


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


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
