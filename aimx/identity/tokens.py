"""Secrets kept in files of the data folder, and tokens for the HTTP side.

A file is made once, mode 0600, whole or not at all. Agent tokens are kept by the store as their SHA-256 only.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from pathlib import Path

from aimx import durable


def kept_token(path: Path) -> str:
    """The token in `path`, the admin's or that of scrapes; made if there is none. 43 characters, 256 bits."""
    return _kept(path, lambda: secrets.token_urlsafe(32))


def node_secret(path: Path) -> bytes:
    """The node's own 32-byte secret in `path` (hex); made if there is none."""
    return bytes.fromhex(_kept(path, lambda: secrets.token_hex(32)))


def new_token() -> str:
    """A token for one agent's own view. Show it once; store `digest(token)`."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """What the store keeps of a token. The token is random, so a fast hash hides it."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def same(presented: str, token: str) -> bool:
    """Whether two tokens are equal, in constant time."""
    return hmac.compare_digest(digest(presented), digest(token))


def _kept(path: Path, make: Callable[[], str]) -> str:
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if not kept:
        kept = make()
        durable.replace(path, kept.encode() + b"\n")
    return kept
