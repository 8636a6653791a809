"""The node's own authority and certificate, and reloading."""

import contextlib
import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from aimx.identity import certificate
from aimx.identity.certificate import Certificates


def presented(server: ssl.SSLContext, ca: Path, host: str, version: ssl.TLSVersion | None = None) -> bytes:
    """Shake hands in memory; the server's certificate as the client saw it."""
    client_context = ssl.create_default_context(cafile=str(ca))
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    if version:
        client_context.maximum_version = version
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(down, up, server_hostname=host)
    answerer = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, answerer):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = client.getpeercert(binary_form=True)
    assert shown
    assert client.version() == "TLSv1.3"
    return shown


@pytest.fixture
def made(tmp_path: Path) -> Certificates:
    certificates = Certificates(tmp_path / "tls", ["fabric.local"])
    certificates.ensure()
    return certificates


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "fabric.local"])
def test_strict_clients_believe_the_certificate(made: Certificates, host: str) -> None:
    presented(made.server_context(), made.ca, host)


def test_a_name_that_is_not_ours_is_not_believed(made: Certificates) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        presented(made.server_context(), made.ca, "other.example")


def test_nothing_below_tls_1_3(made: Certificates) -> None:
    with pytest.raises(ssl.SSLError):
        presented(made.server_context(), made.ca, "localhost", ssl.TLSVersion.TLSv1_2)


def test_keys_are_for_the_owner_only(made: Certificates) -> None:
    for path in (made.key, made.ca_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_start_keeps_what_is_there_and_a_new_domain_makes_a_new_certificate(made: Certificates) -> None:
    ca, chain = made.ca.read_bytes(), made.chain.read_bytes()
    Certificates(made.ca.parent, ["fabric.local"]).ensure()
    assert made.chain.read_bytes() == chain
    Certificates(made.ca.parent, ["fabric.local", "more.example"]).ensure()
    assert made.chain.read_bytes() != chain
    assert made.ca.read_bytes() == ca, "clients go on trusting it"


def test_a_certificate_near_its_end_is_renewed(made: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = made.chain.read_bytes()
    monkeypatch.setattr(certificate, "RENEW_BEFORE", datetime.timedelta(days=400))
    made.ensure()
    assert made.chain.read_bytes() != chain


def test_somebody_elses_certificate_is_left_alone(made: Certificates, tmp_path: Path) -> None:
    other = Certificates(tmp_path / "other", ["fabric.local"])
    other.ensure()
    made.chain.write_bytes(other.chain.read_bytes())
    made.key.write_bytes(other.key.read_bytes())
    made.ensure()
    assert made.chain.read_bytes() == other.chain.read_bytes()


def test_changed_files_are_presented_to_new_connections(made: Certificates) -> None:
    context = made.server_context()
    before = presented(context, made.ca, "localhost")
    assert made.reload() is False
    Certificates(made.ca.parent, ["fabric.local", "more.example"]).ensure()
    assert made.reload() is True
    after = presented(context, made.ca, "localhost")
    assert before != after
    assert x509.load_der_x509_certificate(after)


def test_broken_files_change_nothing(made: Certificates) -> None:
    context = made.server_context()
    before = presented(context, made.ca, "localhost")
    made.key.write_bytes(b"rubbish")
    assert made.reload() is False
    assert presented(context, made.ca, "localhost") == before
