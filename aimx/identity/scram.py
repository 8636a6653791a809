"""SCRAM-SHA-256, the server's half, without I/O (RFC 5802, RFC 7677).

The same stored keys check a plain password (`proves`). Both run PBKDF2 once, so call `derive` and `proves` off the
event loop. Channel binding is not offered: Python's ssl exports none for TLS 1.3 (RFC 9266).
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import stringprep
import unicodedata

from aimx.store.contract import Credential

ITERATIONS = 4096  # RFC 7677 §4: at least. Our passwords are random, so more rounds would only slow the honest.
SALT_LENGTH = 16
NOBODYS = Credential(bytes(SALT_LENGTH), ITERATIONS, bytes(32), bytes(32))
"""A password that does not exist: of mailboxes in which nobody signs in."""


class Malformed(ValueError):
    """The client's message does not follow the grammar of its mechanism."""


class NotProved(Exception):
    """The proof, or what it is bound to, is wrong."""


def derive(password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> Credential:
    """What to store for `password` (RFC 5802 §3). Raises Malformed for a password that SASLprep prohibits."""
    salt = secrets.token_bytes(SALT_LENGTH) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", prepare(password).encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return Credential(
        salt=salt,
        iterations=iterations,
        stored_key=hashlib.sha256(client_key).digest(),
        server_key=hmac.digest(salted, b"Server Key", "sha256"),
    )


def proves(credential: Credential, password: str) -> bool:
    """Whether `password` is the one `credential` was derived from, in constant time after PBKDF2."""
    try:
        derived = derive(password, salt=credential.salt, iterations=credential.iterations)
    except Malformed:
        return False
    return hmac.compare_digest(derived.stored_key, credential.stored_key)


def decoy(secret: bytes, name: str, iterations: int = ITERATIONS) -> Credential:
    """A credential for a name nobody has, the same every time, so that the challenge does not tell who exists."""
    salt = hmac.digest(secret, b"salt " + name.encode("utf-8", "replace"), "sha256")[:SALT_LENGTH]
    return Credential(
        salt=salt, iterations=iterations, stored_key=secrets.token_bytes(32), server_key=secrets.token_bytes(32)
    )


class Exchange:
    """One SCRAM conversation: `first`, then `challenge`, then `final`."""

    __slots__ = ("_bare", "_credential", "_gs2", "_nonce", "_server_first", "authzid", "name")

    def __init__(self) -> None:
        self.name = ""
        self.authzid = ""
        self._gs2 = b""
        self._bare = b""
        self._nonce = b""
        self._server_first = b""
        self._credential: Credential | None = None

    def first(self, message: bytes) -> None:
        """Read client-first-message; sets `name` and `authzid`. Raises Malformed, or NotProved for channel binding."""
        flag, comma, rest = message.partition(b",")
        authzid, second_comma, bare = rest.partition(b",")
        if not (comma and second_comma):
            raise Malformed("client-first-message")
        if flag.startswith(b"p="):
            raise NotProved("channel binding is not offered")
        if flag not in (b"n", b"y") or (authzid and not authzid.startswith(b"a=")):
            raise Malformed("gs2-header")
        attributes = bare.split(b",")
        # RFC 5802 §5.1: an "m=" extension we do not know must fail the exchange; it would come first here.
        if len(attributes) < 2 or not attributes[0].startswith(b"n=") or not attributes[1].startswith(b"r="):
            raise Malformed("client-first-message-bare")
        client_nonce = attributes[1][2:]
        if not client_nonce or not all(0x21 <= octet <= 0x7E for octet in client_nonce):
            raise Malformed("nonce")
        self.authzid = _saslname(authzid[2:])
        self.name = _saslname(attributes[0][2:])
        self._gs2 = message[: len(message) - len(bare)]
        self._bare = bare
        self._nonce = client_nonce

    def challenge(self, credential: Credential, nonce: bytes | None = None) -> bytes:
        """server-first-message. `nonce` is given by tests only."""
        self._credential = credential
        self._nonce += nonce or base64.b64encode(secrets.token_bytes(18))
        salt = base64.b64encode(credential.salt)
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, credential.iterations)
        return self._server_first

    def final(self, message: bytes) -> bytes:
        """Check client-final-message, answer server-final-message. Raises Malformed, NotProved."""
        assert self._credential is not None, "challenge comes first"
        without_proof, comma, proof_text = message.rpartition(b",p=")
        attributes = without_proof.split(b",")
        if not comma or len(attributes) < 2 or attributes[0][:2] != b"c=" or attributes[1][:2] != b"r=":
            raise Malformed("client-final-message")
        proof = _base64(proof_text)
        bound = _base64(attributes[0][2:])
        if bound != self._gs2 or not hmac.compare_digest(attributes[1][2:], self._nonce):
            raise NotProved("binding or nonce differs")
        auth_message = b",".join((self._bare, self._server_first, without_proof))
        signature = hmac.digest(self._credential.stored_key, auth_message, "sha256")
        if len(proof) != len(signature):
            raise NotProved("proof")
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), self._credential.stored_key):
            raise NotProved("proof")
        return b"v=" + base64.b64encode(hmac.digest(self._credential.server_key, auth_message, "sha256"))


def prepare(password: str) -> str:
    """SASLprep of a password (RFC 4013). Raises Malformed for what it prohibits or for the empty string."""
    if password.isascii():
        if not password or any(c < " " or c == "\x7f" for c in password):
            raise Malformed("password")
        return password
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    text = unicodedata.normalize("NFKC", mapped)
    prohibited = (
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
    )
    if not text or any(table(c) for c in text for table in prohibited):
        raise Malformed("password")
    # RFC 3454 §6: right-to-left text holds no left-to-right letters and begins and ends right-to-left.
    if any(stringprep.in_table_d1(c) for c in text) and (
        any(stringprep.in_table_d2(c) for c in text)
        or not (stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1]))
    ):
        raise Malformed("password")
    return text


def _saslname(value: bytes) -> str:
    """RFC 5802 §5.1: `=2C` and `=3D` stand for comma and equals; any other `=` is an error."""
    bare = value.replace(b"=2C", b"").replace(b"=3D", b"")
    if b"=" in bare or b"\0" in bare:
        raise Malformed("name")
    try:
        return value.replace(b"=2C", b",").replace(b"=3D", b"=").decode()
    except UnicodeDecodeError:
        raise Malformed("name") from None


def _base64(value: bytes) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise Malformed("base64") from None
