"""C2SP signed notes: a text, a blank line, and one line for each signature (https://c2sp.org/signed-note).

A key is known by a *verifier key* (vkey) `name+hex(key id)+base64(type ‖ public key)`; the key id is the first four
octets of SHA-256(name ‖ LF ‖ type ‖ public key). Three types are spoken here:

    01                     Ed25519 over the text
    04                     cosignature/v1: Ed25519 over a time and the text (https://c2sp.org/tlog-cosignature)
    ff ‖ aimx/receipt/v1   Ed25519 over a receipt: a type of its own, so that no receipt can pose as a checkpoint
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aimx.tlog.errors import FormatError, ProofError

ED25519 = b"\x01"
COSIGNATURE_V1 = b"\x04"
RECEIPT = b"\xff" + b"aimx/receipt/v1"

MAX_NOTE = 1 << 20
"""Octets; a checkpoint is some hundred. A bound, because notes come from strangers."""
MAX_SIGNATURES = 128
"""C2SP asks that at least 16 be accepted."""

_DASH = "\u2014 "
_PRIVATE = "PRIVATE+KEY+"


class Signature(NamedTuple):
    """One signature line: who says to have signed, the key's id (4 octets), and the octets after it."""

    name: str
    key_id: bytes
    blob: bytes

    def line(self) -> str:
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.blob).decode()}\n"


class Note(NamedTuple):
    """The signed text, its last newline included, and its signatures, none of them checked."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(signature.line() for signature in self.signatures)


class Verified(NamedTuple):
    """A signature that holds. `time` is a cosignature's own claim, in Unix seconds; None for other types."""

    verifier: "Verifier"
    signature: Signature
    time: int | None


def key_id(name: str, kind: bytes, public: bytes) -> bytes:
    """The four octets by which a signature line names its key."""
    return sha256(name.encode() + b"\n" + kind + public).digest()[:4]


def check_name(name: str) -> None:
    """Raises FormatError unless `name` may name a key: not empty, no white space, no plus sign."""
    if not name or "+" in name or any(char.isspace() or char < "!" or char == "\x7f" for char in name):
        raise FormatError("a key's name is not empty and holds neither white space nor a plus sign")


def decode64(text: str) -> bytes:
    """Strict standard base64. Raises FormatError, also for a spelling that is not the canonical one."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError("not base64") from error
    if base64.b64encode(data).decode() != text:
        raise FormatError("not canonical base64")
    return data


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key and the name it signs under."""

    name: str
    kind: bytes
    public: bytes

    @property
    def key_id(self) -> bytes:
        return key_id(self.name, self.kind, self.public)

    def vkey(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(self.kind + self.public).decode()}"

    @classmethod
    def parse(cls, vkey: str) -> "Verifier":
        """Raises FormatError for a malformed key, an unknown type, or an id that is not this key's."""
        parts = vkey.strip().split("+", 2)
        if len(parts) != 3:
            raise FormatError("a verifier key has three parts joined by plus signs")
        name, identifier, encoded = parts
        check_name(name)
        data = decode64(encoded)
        kind = _kind_of(data)
        verifier = cls(name, kind, data[len(kind) :])
        if identifier != verifier.key_id.hex():
            raise FormatError("the verifier key's id is not the id of this name and key")
        return verifier

    def verify(self, text: bytes, blob: bytes) -> int | None:
        """Raises ProofError unless `blob` signs `text`. Returns a cosignature's time (Unix seconds), else None."""
        time: int | None = None
        if self.kind == COSIGNATURE_V1:
            if len(blob) != 72:
                raise ProofError(f"a cosignature of {self.name} has the wrong length")
            time = int.from_bytes(blob[:8], "big")
            text, blob = cosigned(text, time), blob[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(blob, text)
        except InvalidSignature as error:
            raise ProofError(f"the signature of {self.name} does not hold") from error
        return time


def _kind_of(data: bytes) -> bytes:
    """The type at the front of a vkey's data, which must leave exactly one Ed25519 public key behind it."""
    for kind in (ED25519, COSIGNATURE_V1, RECEIPT):
        if data.startswith(kind) and len(data) == len(kind) + 32:
            return kind
    raise FormatError("a key of a type that is not known here")


def cosigned(text: bytes, time: int) -> bytes:
    """What a cosignature/v1 signs: the time and the whole text of the note (https://c2sp.org/tlog-cosignature)."""
    return b"cosignature/v1\ntime %d\n" % time + text


class SigningKey(Protocol):
    """Whatever signs under a name: a private key in this process, or one that another keeps."""

    @property
    def verifier(self) -> Verifier: ...

    def sign(self, text: bytes, time: int | None = None) -> Signature:
        """Sign the whole text of a note. A cosigner has to say the `time` (Unix seconds)."""


class Signer:
    """A private key and the name it signs under. Its skey must not leave the machine; nothing here prints it."""

    __slots__ = ("_key", "_verifier")

    def __init__(self, name: str, seed: bytes, kind: bytes = ED25519) -> None:
        """`seed` is the 32 octets of RFC 8032 §5.1.5."""
        check_name(name)
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._verifier = Verifier(name, kind, self._key.public_key().public_bytes_raw())

    @property
    def verifier(self) -> Verifier:
        return self._verifier

    def __repr__(self) -> str:
        return f"Signer({self.verifier.vkey()})"

    @classmethod
    def parse(cls, skey: str) -> "Signer":
        """Read `PRIVATE+KEY+name+id+base64(type ‖ seed)`, as Go's note package writes it."""
        text = skey.strip()
        parts = text[len(_PRIVATE) :].split("+", 2)
        if not text.startswith(_PRIVATE) or len(parts) != 3:
            raise FormatError("not a signing key")
        name, identifier, encoded = parts
        data = decode64(encoded)
        kind = _kind_of(data)
        signer = cls(name, data[len(kind) :], kind)
        if identifier != signer.verifier.key_id.hex():
            raise FormatError("the signing key's id is not the id of this name and key")
        return signer

    def skey(self) -> str:
        """The private key as text: for the key file alone."""
        data = base64.b64encode(self.verifier.kind + self._key.private_bytes_raw()).decode()
        return f"{_PRIVATE}{self.verifier.name}+{self.verifier.key_id.hex()}+{data}"

    def sign(self, text: bytes, time: int | None = None) -> Signature:
        """Sign the whole text of a note. A cosigner has to say the `time` (Unix seconds)."""
        name, identifier = self.verifier.name, self.verifier.key_id
        if self.verifier.kind != COSIGNATURE_V1:
            return Signature(name, identifier, self._key.sign(text))
        if time is None:
            raise ValueError("a cosignature says when it was made")
        return Signature(name, identifier, time.to_bytes(8, "big") + self._key.sign(cosigned(text, time)))


def check_text(text: str) -> None:
    """Raises FormatError unless `text` can be a note's text: ends with a newline, no other control characters."""
    if not text.endswith("\n"):
        raise FormatError("the text of a note ends with a newline")
    if any((char < " " and char != "\n") or char == "\x7f" for char in text):
        raise FormatError("a note holds no control characters but newlines")


def sign(text: str, signers: Iterable[SigningKey]) -> Note:
    """A note of `text` with one signature for each signer."""
    check_text(text)
    return Note(text, tuple(signer.sign(text.encode()) for signer in signers))


def parse(data: str | bytes) -> Note:
    """Take a note apart. Raises FormatError; checks no signature."""
    if len(data) > MAX_NOTE:
        raise FormatError("too long for a note")
    if isinstance(data, bytes):
        try:
            data = data.decode()
        except UnicodeDecodeError as error:
            raise FormatError("a note is UTF-8") from error
    check_text(data)
    # The signatures are what follows the *last* blank line: the text itself may hold blank lines.
    cut = data.rfind("\n\n")
    if cut < 0:
        raise FormatError("a note has a blank line before its signatures")
    lines = data[cut + 2 :].split("\n")[:-1]
    if not lines or len(lines) > MAX_SIGNATURES:
        raise FormatError("a note has at least one signature, and a bounded number")
    return Note(data[: cut + 1], tuple(_parse_line(line) for line in lines))


def _parse_line(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH):
        raise FormatError("a signature line begins with an em dash")
    check_name(name)
    blob = decode64(encoded)
    if len(blob) < 5:
        raise FormatError("a signature holds a key id and at least one octet")
    return Signature(name, blob[:4], blob[4:])


def verify(note: Note, verifiers: Sequence[Verifier]) -> list[Verified]:
    """The signatures by known keys, all of which hold; others are passed over, as C2SP asks.

    Raises ProofError when a known key's signature does not hold, and when no known key has signed.
    """
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    held: dict[tuple[str, bytes], Verified] = {}
    text = note.text.encode()
    for signature in note.signatures:
        who = (signature.name, signature.key_id)
        verifier = known.get(who)
        if verifier is not None and who not in held:
            held[who] = Verified(verifier, signature, verifier.verify(text, signature.blob))
    if not held:
        raise ProofError("no known key has signed this note")
    return list(held.values())
