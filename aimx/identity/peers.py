"""Which peer a client's certificate proves (architecture: doors). TLS has checked that some peer's authority vouches
for it; this says whose."""

from collections.abc import Mapping

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from aimx.config import Peer, SettingError


class Peers:
    """The `[peer.NAME]` sections with their authorities read."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        """Raises SettingError for an authority that cannot be read."""
        self._authorities = {name: _certificates(name, peer) for name, peer in peers.items()}

    def recognise(self, certificate: bytes) -> str | None:
        """The name of the one peer whose authority issued this DER certificate, or whose it is; None: nobody's."""
        try:
            shown = x509.load_der_x509_certificate(certificate)
        except ValueError:
            return None
        found = [
            name for name, known in self._authorities.items() if any(_vouches(authority, shown) for authority in known)
        ]
        return found[0] if len(found) == 1 else None  # of two that could be meant, neither is proved


def _certificates(name: str, peer: Peer) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(peer.ca.read_bytes())
    except (OSError, ValueError):
        raise SettingError(
            f"peer.{name}.ca: {str(peer.ca)!r} cannot be read as PEM; copy the peer's tls/ca.pem there"
        ) from None


def _vouches(authority: x509.Certificate, shown: x509.Certificate) -> bool:
    if authority == shown:
        return True
    try:
        shown.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
