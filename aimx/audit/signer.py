"""Log keys that live outside this process: in an ssh-agent, or behind a command that speaks to a KMS.

`[audit] signer` says where a key is made or found when one is needed:

    file                   a file of the data folder
    agent:SOCKET[#NAME]    an Ed25519 key in an ssh-agent (draft-ietf-sshm-ssh-agent); without SOCKET, $SSH_AUTH_SOCK;
                           NAME is the key's comment, where the agent holds several
    exec:COMMAND           `COMMAND public` prints the base64 of the 32 octets of an Ed25519 public key, `COMMAND sign`
                           reads the octets to sign from its standard input and prints the base64 of the signature

Both are asked once a checkpoint, about once a second, and each answer is checked before it is believed.
"""

import base64
import os
import shlex
import socket
import struct
import subprocess
from typing import NamedTuple

from aimx.audit.log import LogError
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import ED25519, Signature, SigningKey, Verifier

PATIENCE_S = 10.0
MAX_ANSWER = 1 << 18
"""Octets an agent may answer with (OpenSSH's own bound)."""

FAILURE, IDENTITIES_WANTED, IDENTITIES, SIGN_WANTED, SIGNED = 5, 11, 12, 13, 14
ALGORITHM = b"ssh-ed25519"


class SignerAway(LogError):
    """The key is not at hand now: no agent, no such key in it, a command that fails. Nothing was signed."""


def outside(spec: str, name: str, public: bytes | None = None) -> SigningKey:
    """The key that `spec` leads to, signing as `name`.

    Without `public` the agent or command is asked which key it has; with it, nothing is asked until something is to be
    signed. Raises SignerAway.
    """
    kind, _, where = spec.partition(":")
    match kind:
        case "agent":
            path, _, comment = where.partition("#")
            public = public or _identity(path, comment)
            return AgentKey(Verifier(name, ED25519, public), path)
        case "exec":
            command = tuple(shlex.split(where))
            public = public or _run(command, "public", b"", 32)
            return CommandKey(Verifier(name, ED25519, public), command)
    raise SignerAway(f"{spec!r} is not a signer; write file, agent:SOCKET or exec:COMMAND")


class AgentKey(NamedTuple):
    """An Ed25519 key in an ssh-agent."""

    verifier: Verifier
    path: str

    def sign(self, text: bytes, time: int | None = None) -> Signature:
        wanted = bytes([SIGN_WANTED]) + string(key_blob(self.verifier.public)) + string(text) + struct.pack(">I", 0)
        answer = _ask(self.path, wanted)
        if answer[:1] != bytes([SIGNED]):
            raise SignerAway(f"the agent at {_shown(self.path)} refuses to sign with the key of {self.verifier.name}")
        (blob,) = strings(answer[1:], 1)
        algorithm, signature = strings(blob, 2)
        if algorithm != ALGORITHM:
            raise SignerAway(f"the agent at {_shown(self.path)} answers with another kind of signature")
        return _checked(self.verifier, text, signature)


class CommandKey(NamedTuple):
    """An Ed25519 key behind a command."""

    verifier: Verifier
    command: tuple[str, ...]

    def sign(self, text: bytes, time: int | None = None) -> Signature:
        return _checked(self.verifier, text, _run(self.command, "sign", text, 64))


def _checked(verifier: Verifier, text: bytes, signature: bytes) -> Signature:
    try:
        verifier.verify(text, signature)
    except ProofError:
        raise SignerAway(f"what signs for {verifier.name} has another key than it had") from None
    return Signature(verifier.name, verifier.key_id, signature)


# --- ssh-agent ---


def string(data: bytes) -> bytes:
    """RFC 4251 §5."""
    return struct.pack(">I", len(data)) + data


def strings(data: bytes, count: int) -> list[bytes]:
    """The first `count` strings of `data`. Raises SignerAway when it ends before."""
    found, at = list[bytes](), 0
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "big")
        if start > len(data) or at > len(data):
            raise SignerAway("an agent's message ends too early")
        found.append(data[start:at])
    return found


def key_blob(public: bytes) -> bytes:
    """RFC 8709 §4."""
    return string(ALGORITHM) + string(public)


def _identity(path: str, comment: str) -> bytes:
    answer = _ask(path, bytes([IDENTITIES_WANTED]))
    if answer[:1] != bytes([IDENTITIES]) or len(answer) < 5:
        raise SignerAway(f"the agent at {_shown(path)} does not tell its keys")
    pairs = strings(answer[5:], 2 * min(int.from_bytes(answer[1:5], "big"), MAX_ANSWER // 8))
    found = [
        strings(blob, 2)[1]
        for blob, said in zip(pairs[::2], pairs[1::2], strict=True)
        if blob.startswith(string(ALGORITHM)) and comment in ("", said.decode(errors="replace"))
    ]
    if len(found) != 1 or len(found[0]) != 32:
        which = f" called {comment!r}" if comment else ""
        raise SignerAway(
            f"the agent at {_shown(path)} has {len(found)} Ed25519 keys{which}; name one as agent:PATH#NAME"
        )
    return found[0]


def _ask(path: str, message: bytes) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.settimeout(PATIENCE_S)
            agent.connect(path or os.environ.get("SSH_AUTH_SOCK", ""))
            agent.sendall(string(message))
            with agent.makefile("rb") as answer:
                length = int.from_bytes(answer.read(4), "big")
                found = answer.read(length) if length <= MAX_ANSWER else b""
    except OSError as error:
        why = error.strerror or "it does not answer"
        raise SignerAway(f"the agent at {_shown(path)} cannot be asked: {why}") from error
    if not found or len(found) != length:
        raise SignerAway(f"the agent at {_shown(path)} gave no whole answer")
    return found


def _shown(path: str) -> str:
    return path or "$SSH_AUTH_SOCK"


# --- commands ---


def _run(command: tuple[str, ...], what: str, given: bytes, size: int) -> bytes:
    if not command:
        raise SignerAway("exec: names no command")
    try:
        done = subprocess.run([*command, what], input=given, capture_output=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SignerAway(f"{command[0]} cannot be run to {what}: {type(error).__name__}") from error
    if done.returncode:
        raise SignerAway(f"{command[0]} {what} ended with {done.returncode}")
    try:
        found = base64.b64decode(done.stdout.strip(), validate=True)
    except ValueError:
        found = b""
    if len(found) != size:
        raise SignerAway(f"{command[0]} {what} did not print {size} octets in base64")
    return found


def written(key: SigningKey) -> str:
    """How a key outside this process is remembered: where it is and what its verifier key is. Holds no secret."""
    match key:
        case AgentKey(verifier, path):
            return f"agent:{path} {verifier.vkey()}"
        case CommandKey(verifier, command):
            return f"exec:{shlex.join(command)} {verifier.vkey()}"
    raise TypeError(f"{key!r} is in this process")


def read(text: str) -> SigningKey:
    """The inverse of `written`. Raises FormatError."""
    spec, _, vkey = text.strip().rpartition(" ")
    verifier = Verifier.parse(vkey)
    if verifier.kind != ED25519:
        raise FormatError("a key outside signs checkpoints and nothing else")
    try:
        return outside(spec, verifier.name, verifier.public)
    except LogError as error:
        raise FormatError(str(error)) from error
