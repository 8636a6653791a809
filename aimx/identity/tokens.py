"""Secrets kept in files of the data folder, and tokens for the HTTP side.

A file is made once, mode 0600, whole or not at all. Agent tokens are kept by the store as their SHA-256 only.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path


def admin_token(path: Path) -> str:
    """The admin token in `path`; made if there is none. 43 characters, 256 bits."""
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


def write_private(path: Path, content: bytes) -> None:
    """Put `content` in `path`, 0600, durable, replacing what was there in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _kept(path: Path, make: Callable[[], str]) -> str:
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if not kept:
        kept = make()
        write_private(path, kept.encode() + b"\n")
    return kept
