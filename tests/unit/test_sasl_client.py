"""Our client signs in at our server, and leaves one that does not prove itself."""

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.delivery.sasl_client import Distrusted, Plain, Scram, choose
from aimx.identity import scram


def plain(line: bytes) -> bytes:
    return b64decode(line.strip().rpartition(b" ")[2])


def challenge(octets: bytes) -> str:
    return b64encode(octets).decode()


@pytest.mark.parametrize(("user", "password"), [("node", "s3cret"), ("a=b,c", "pässwörd")])
def test_scram_against_our_own_server(user: str, password: str) -> None:
    client, server = Scram(user, password), scram.Exchange()
    server.first(plain(client.begin()))
    assert server.name == user
    final = client.respond(challenge(server.challenge(scram.derive(password))))
    assert not client.satisfied
    assert client.respond(challenge(server.final(plain(final)))) == b"\r\n"
    assert client.satisfied


def test_a_server_that_does_not_know_the_password_is_left() -> None:
    client, server = Scram("node", "s3cret"), scram.Exchange()
    server.first(plain(client.begin()))
    client.respond(challenge(server.challenge(scram.derive("another"))))
    with pytest.raises(Distrusted):
        client.respond(challenge(b"v=" + b64encode(b"x" * 32)))
    assert not client.satisfied


@pytest.mark.parametrize(
    "first",
    [
        b"r=other,s=c2FsdA==,i=4096",
        b"r=nonce,s=c2FsdA==,i=4096",
        b"r=nonceX,s=c2FsdA==,i=1",
        b"r=nonceX,s=c2FsdA==,i=999999999",
        b"r=nonceX,s=!,i=4096",
        b"m=x,r=nonceX,s=c2FsdA==,i=4096",
        b"",
    ],
)
def test_a_challenge_that_is_not_one_is_left(first: bytes) -> None:
    client = Scram("node", "s3cret", "nonce")
    client.begin()
    with pytest.raises(Distrusted):
        client.respond(challenge(first))


@given(st.text(max_size=60))
def test_garbage_is_distrusted_and_nothing_else(said: str) -> None:
    for client in (Scram("node", "s3cret"), Plain("node", "s3cret")):
        client.begin()
        with pytest.raises(Distrusted):
            client.respond(said)


def test_the_best_that_both_know_is_chosen() -> None:
    assert isinstance(choose({"PLAIN", "SCRAM-SHA-256"}, "u", "p"), Scram)
    assert isinstance(choose({"PLAIN", "LOGIN"}, "u", "p"), Plain)
    assert choose({"CRAM-MD5"}, "u", "p") is None
