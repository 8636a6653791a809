"""A certificate proves the one peer whose authority issued it, or whose it is."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aimx.config import Peer, SettingError
from aimx.identity.certificate import Certificates
from aimx.identity.peers import Peers


def node(folder: Path, name: str) -> Certificates:
    made = Certificates(folder / name, [f"{name}.example"])
    made.ensure()
    made.peer_credentials()
    return made


def der(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


def peers(**authorities: Path) -> Peers:
    return Peers({name: Peer(domains=[f"{name}.example"], ca=ca) for name, ca in authorities.items()})


def test_a_peer_is_known_by_its_authority_or_by_its_certificate(tmp_path: Path) -> None:
    lab, office, stranger = (node(tmp_path, name) for name in ("lab", "office", "stranger"))
    known = peers(lab=lab.ca, office=office.peer_chain)
    assert known.recognise(der(lab.peer_chain)) == "lab"
    assert known.recognise(der(office.peer_chain)) == "office"
    assert known.recognise(der(stranger.peer_chain)) is None
    assert known.recognise(b"nonsense") is None


def test_a_certificate_that_could_be_two_peers_proves_none(tmp_path: Path) -> None:
    lab = node(tmp_path, "lab")
    assert peers(lab=lab.ca, twin=lab.ca).recognise(der(lab.peer_chain)) is None


@pytest.mark.parametrize("content", [None, b"no PEM"])
def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=r"peer\.lab\.ca: "):
        peers(lab=path)
