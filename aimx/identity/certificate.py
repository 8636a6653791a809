"""The node's own certificate authority and its server certificate, in the data folder.

Made at first start so that TLS needs no set-up: clients trust `ca.pem`. `Certificates.reload` takes changed files into
use for new connections without a restart, which is also how certificates from elsewhere (ACME) get in: put `server.pem`
(chain) and `server.key` there and this module leaves them alone as long as they were not signed by its own CA.
"""

import datetime
import logging
import os
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aimx import durable

log = logging.getLogger("aimx.identity")

CA_LIFE = datetime.timedelta(days=3650)
SERVER_LIFE = datetime.timedelta(days=397)
RENEW_BEFORE = datetime.timedelta(days=30)
BACKDATED = datetime.timedelta(hours=1)
"""A client whose clock is a little slow still believes a new certificate."""

ALWAYS_NAMED = ("localhost", "127.0.0.1", "::1")

_Stamp = tuple[int, int, int]


class Certificates:
    """Certificate files in `folder`, and the one TLS context every listener shares."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """`names`: domains and addresses the certificate is for, beside `ALWAYS_NAMED`."""
        self.ca = folder / "ca.pem"
        self.ca_key = folder / "ca.key"
        self.chain = folder / "server.pem"
        self.key = folder / "server.key"
        self.peer_chain = folder / "peer.pem"
        self.peer_key = folder / "peer.key"
        self._names = tuple(dict.fromkeys((*ALWAYS_NAMED, *names)))
        self._context: ssl.SSLContext | None = None
        self._peer_context: ssl.SSLContext | None = None
        self._public_context: ssl.SSLContext | None = None
        self._loaded: tuple[_Stamp, _Stamp] | None = None

    def ensure(self) -> None:
        """Make what is missing, renew what is about to end or does not name us. Blocking; a few milliseconds."""
        self.chain.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC)
        ca, ca_key = self._authority(now)
        if not self._serves(self.chain, self.key, ca, now):
            self._issue(self.chain, self.key, ca, ca_key, ExtendedKeyUsageOID.SERVER_AUTH, now)

    def peer_credentials(self) -> tuple[Path, Path]:
        """Chain and key that this node shows where it is the client, to another node. Always from its own authority,
        which is what the other one is told to believe; made or renewed as `ensure` does."""
        now = datetime.datetime.now(datetime.UTC)
        ca, ca_key = self._authority(now)
        if not self._serves(self.peer_chain, self.peer_key, ca, now):
            self._issue(self.peer_chain, self.peer_key, ca, ca_key, ExtendedKeyUsageOID.CLIENT_AUTH, now)
        return self.peer_chain, self.peer_key

    def server_context(self) -> ssl.SSLContext:
        """TLS 1.3 only. The same object every time; `reload` changes what it presents."""
        if self._context is None:
            self._context = self._new_context()
        return self._context

    def peer_context(self, authorities: Sequence[Path]) -> ssl.SSLContext:
        """As `server_context`, and the client must show a certificate that one of these PEM files vouches for."""
        if self._peer_context is None:
            context = self._new_context()
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            for path in authorities:
                context.load_verify_locations(path)
            self._peer_context = context
        return self._peer_context

    def public_context(self, floor: ssl.TLSVersion) -> ssl.SSLContext:
        """As `server_context`, for clients that may know no better than `floor`."""
        if self._public_context is None:
            context = self._new_context()
            context.minimum_version = floor
            context.options |= ssl.OP_NO_RENEGOTIATION
            self._public_context = context
        return self._public_context

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # No session tickets: agents keep their connections, and a ticket key is one more secret to turn over.
        context.num_tickets = 0
        self._load(context)
        return context

    def reload(self) -> bool:
        """Take changed files into use for new connections. False: nothing changed, or the new files are no good."""
        if self._context is None:
            return False
        try:
            if self._stamps() == self._loaded:
                return False
            # Tried on a context of its own first: a key that does not match must not reach the one in use.
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load(self._context)
            for context in (self._peer_context, self._public_context):
                if context is not None:
                    self._load(context)
        except (OSError, ssl.SSLError) as error:
            log.error("certificate not reloaded", extra={"event": "tls.reload_failed", "error": type(error).__name__})
            return False
        log.info("certificate reloaded", extra={"event": "tls.reloaded"})
        return True

    def _load(self, context: ssl.SSLContext) -> None:
        stamps = self._stamps()
        context.load_cert_chain(self.chain, self.key)
        self._loaded = stamps

    def _stamps(self) -> tuple[_Stamp, _Stamp]:
        return _stamp(self.chain), _stamp(self.key)

    def _authority(self, now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        if self.ca.exists() and self.ca_key.exists():
            certificate = x509.load_pem_x509_certificate(self.ca.read_bytes())
            key = serialization.load_pem_private_key(self.ca_key.read_bytes(), None)
            if isinstance(key, ec.EllipticCurvePrivateKey) and certificate.not_valid_after_utc > now + SERVER_LIFE:
                return certificate, key
        certificate, key = _authority_certificate(now)
        durable.replace(self.ca_key, _key_pem(key))
        durable.replace(self.ca, _pem(certificate))
        return certificate, key

    def _issue(
        self,
        chain: Path,
        key_file: Path,
        ca: x509.Certificate,
        ca_key: ec.EllipticCurvePrivateKey,
        usage: x509.ObjectIdentifier,
        now: datetime.datetime,
    ) -> None:
        certificate, key = _certificate(ca, ca_key, self._names, usage, now)
        durable.replace(key_file, _key_pem(key))
        durable.replace(chain, _pem(certificate) + _pem(ca))

    def _serves(self, chain: Path, key: Path, ca: x509.Certificate, now: datetime.datetime) -> bool:
        """Whether the certificate that is there will do. One that another CA signed is its owner's affair."""
        if not (chain.exists() and key.exists()):
            return False
        certificate = x509.load_pem_x509_certificate(chain.read_bytes())
        try:
            certificate.verify_directly_issued_by(ca)
        except (ValueError, TypeError, InvalidSignature):
            return certificate.issuer != ca.subject
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return certificate.not_valid_after_utc > now + RENEW_BEFORE and set(_general_names(self._names)) <= set(
            alternatives
        )


def _authority_certificate(now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # A random part in the name: two nodes' authorities in one trust store must not be taken for each other.
    name = _name(f"AIMX local CA {os.urandom(4).hex()}")
    certificate = (
        _builder(name, name, key, now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _certificate(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    usage: x509.ObjectIdentifier,
    now: datetime.datetime,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    ca_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_name("AIMX node"), ca.subject, key, now, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    general: list[x509.GeneralName] = []
    for name in names:
        try:
            general.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            general.append(x509.DNSName(name))
    return general


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
