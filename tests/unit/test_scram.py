"""SCRAM-SHA-256 against the RFC's own example, and everything a client may get wrong."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.identity.scram import Exchange, Malformed, NotProved, decoy, derive, prepare, proves

# RFC 7677 §3
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
CLIENT_FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
WITHOUT_PROOF = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
CLIENT_FINAL = WITHOUT_PROOF + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def begun() -> Exchange:
    exchange = Exchange()
    exchange.first(CLIENT_FIRST)
    assert exchange.challenge(derive("pencil", salt=SALT, iterations=4096), SERVER_NONCE) == SERVER_FIRST
    return exchange


def test_the_example_of_rfc_7677() -> None:
    exchange = begun()
    assert exchange.name == "user"
    assert exchange.final(CLIENT_FINAL) == SERVER_FINAL


@pytest.mark.parametrize(
    "final",
    [
        CLIENT_FINAL.replace(b"p=dHzb", b"p=dHzc"),
        CLIENT_FINAL.replace(b"k0,", b"k1,"),
        CLIENT_FINAL.replace(b"c=biws", b"c=eSws"),
        WITHOUT_PROOF + b",p=",
        WITHOUT_PROOF + b",p=AAAA",
    ],
)
def test_a_wrong_proof_nonce_or_binding_proves_nothing(final: bytes) -> None:
    with pytest.raises(NotProved):
        begun().final(final)


@pytest.mark.parametrize("final", [b"", b"p=AAAA", b"c=biws,p=AAAA", b"r=x,c=biws,p=AAAA", WITHOUT_PROOF + b",p=!"])
def test_a_malformed_final_message_is_malformed(final: bytes) -> None:
    with pytest.raises(Malformed):
        begun().final(final)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"n,,n=user",
        b"n,,r=abc,n=user",
        b"n,,n=user,r=",
        b"n,,n=user,r=a b",
        b"n,,n=us=er,r=abc",
        b"n,,n=\xff,r=abc",
        b"n,,m=ext,n=user,r=abc",
        b"x,,n=user,r=abc",
        b"n,user,n=user,r=abc",
    ],
)
def test_a_malformed_first_message_is_malformed(first: bytes) -> None:
    with pytest.raises(Malformed):
        Exchange().first(first)


def test_channel_binding_that_was_not_offered_is_refused() -> None:
    with pytest.raises(NotProved):
        Exchange().first(b"p=tls-exporter,,n=user,r=abc")


def test_names_are_unescaped() -> None:
    exchange = Exchange()
    exchange.first(b"y,a=other=2Cone,n=a=3Db=2Cc,r=abc")
    assert (exchange.name, exchange.authzid) == ("a=b,c", "other,one")


def client_final(password: str, first: bytes, server_first: bytes) -> bytes:
    """An independent client half, written from RFC 5802 §3."""
    nonce, salt, rounds = (part[2:] for part in server_first.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=" + base64.b64encode(b"n,,") + b",r=" + nonce
    message = first[3:] + b"," + server_first + b"," + without
    signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return without + b",p=" + base64.b64encode(proof)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40), st.booleans())
def test_the_right_password_and_no_other_is_proved(password: str, right: bool) -> None:
    credential = derive(password, iterations=1)
    exchange = Exchange()
    exchange.first(CLIENT_FIRST)
    server_first = exchange.challenge(credential)
    final = client_final(password if right else password + "x", CLIENT_FIRST, server_first)
    assert proves(credential, password if right else password + "x") is right
    if right:
        assert exchange.final(final).startswith(b"v=")
    else:
        with pytest.raises(NotProved):
            exchange.final(final)


@pytest.mark.parametrize(
    ("password", "prepared"),
    [("I\u00adX", "IX"), ("user", "user"), ("\u00aa", "a"), ("\u2168", "IX"), ("a\u00a0b", "a b")],
)
def test_passwords_are_prepared_as_rfc_4013_says(password: str, prepared: str) -> None:
    assert prepare(password) == prepared


@pytest.mark.parametrize("password", ["", "\x07", "\u0627\u0031", "a\u200e\u0007", "\ud800"])
def test_prohibited_passwords_are_refused(password: str) -> None:
    with pytest.raises(Malformed):
        prepare(password)


def test_a_decoy_is_the_same_every_time_and_like_a_true_one() -> None:
    true, one, two, other = derive("x"), decoy(b"k", "a"), decoy(b"k", "a"), decoy(b"k", "b")
    assert one.salt == two.salt != other.salt
    assert (len(one.salt), one.iterations) == (len(true.salt), true.iterations)
