"""A process that keeps the log's key, under another user than the mail: `aimx signer`.

It speaks the ssh-agent protocol over a Unix socket and knows two requests: which key it has, and to sign. It signs
nothing but checkpoints, and of each log only forward: never a smaller size, never another root for a size it has
signed. So whoever takes over the mail process can have lies signed while he is there, but cannot take the key away and
cannot have what was signed replaced.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from base64 import b64encode
from pathlib import Path

from aimx import durable
from aimx.audit.signer import (
    ALGORITHM,
    FAILURE,
    IDENTITIES,
    IDENTITIES_WANTED,
    MAX_ANSWER,
    SIGN_WANTED,
    SIGNED,
    SignerAway,
    key_blob,
    string,
    strings,
)
from aimx.tlog import checkpoint
from aimx.tlog.errors import FormatError
from aimx.tlog.note import Signer

log = logging.getLogger("aimx.signer")

REFUSED = bytes([FAILURE])


class Keeper:
    """One key, and the newest checkpoint of each log that it has signed, in a file that is written first."""

    def __init__(self, signer: Signer, memory: Path) -> None:
        self._signer = signer
        self._memory = memory
        self._seen: dict[str, tuple[int, str]] = {}
        if memory.exists():
            self._seen = {origin: (size, root) for origin, (size, root) in json.loads(memory.read_text()).items()}

    def answer(self, message: bytes) -> bytes:
        """The answer to one request, both without their length."""
        match message[:1]:
            case bytes() as kind if kind == bytes([IDENTITIES_WANTED]):
                blob = key_blob(self._signer.verifier.public)
                comment = self._signer.verifier.name.encode()
                return bytes([IDENTITIES]) + struct.pack(">I", 1) + string(blob) + string(comment)
            case bytes() as kind if kind == bytes([SIGN_WANTED]):
                return self._sign(message[1:])
        return REFUSED

    def _sign(self, request: bytes) -> bytes:
        try:
            blob, text = strings(request, 2)
            found = checkpoint.parse(text.decode())
        except (SignerAway, FormatError, UnicodeDecodeError):
            log.warning("refused to sign what is no checkpoint")
            return REFUSED
        root = b64encode(found.root).decode()
        size, last = self._seen.get(found.origin, (0, root))
        if blob != key_blob(self._signer.verifier.public) or found.size < size:
            return REFUSED
        if found.size == size and root != last:
            log.error("refused to sign a second history", extra={"origin": found.origin, "size": found.size})
            return REFUSED
        self._seen[found.origin] = found.size, root
        durable.replace(self._memory, json.dumps(self._seen).encode())
        return bytes([SIGNED]) + string(string(ALGORITHM) + string(self._signer.sign(text).blob))


async def serve(keeper: Keeper, path: Path, users: frozenset[int], ready: asyncio.Event | None = None) -> None:
    """Answer on a Unix socket until cancelled. Only processes of `users` (and root) are heard."""

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _user(writer) not in users | {0, os.geteuid()}:
                log.warning("a process of another user was turned away", extra={"uid": _user(writer)})
                return
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                if length > MAX_ANSWER:
                    return
                writer.write(string(keeper.answer(await reader.readexactly(length))))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_unix_server(session, sock=_bound(path))
    if ready is not None:
        ready.set()
    async with server:
        await server.serve_forever()


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    path.chmod(0o666)  # whom it hears is decided by who asks
    return made


def _user(writer: asyncio.StreamWriter) -> int:
    """The asking process's user, by the kernel's word (SO_PEERCRED)."""
    peer = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
