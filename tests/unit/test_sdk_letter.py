"""What an agent may give to `send`: written as its content type says, or refused in a word before anything is sent."""

import socket
import ssl

import pytest

from aimx.message.payload import PayloadError
from aimx.sdk.errors import InvalidMessage, reason
from aimx.sdk.letter import compose, encode
from aimx.telemetry.context import Context

CONTEXT = Context(bytes(range(16)), bytes(range(8)), 1)


@pytest.mark.parametrize(
    ("content_type", "part"),
    [
        ("text/plain; charset=latin1", ("text/plain; charset=latin1", "Grüße".encode("latin1"))),
        ("text/markdown", ('text/markdown; charset="utf-8"', "Grüße".encode())),
        ('text/plain; charset="utf-8"', ('text/plain; charset="utf-8"', "Grüße".encode())),
    ],
)
def test_text_is_in_the_charset_that_its_type_promises(content_type: str, part: tuple[str, bytes]) -> None:
    assert encode("Grüße", content_type)[:2] == part


@pytest.mark.parametrize(
    ("payload", "content_type", "says"),
    [
        ("hi", "foo", "no content type"),
        ("hi", "text/plain\r\nX: y", "no content type"),
        ("hi", "", "no content type"),
        ("Grüße", "text/plain; charset=ascii", "ascii"),
        ("hi", "text/plain; charset=klingon", "klingon"),
        ({"a": 1}, "text/plain", "only a str"),
        ("hi", "application/protobuf", "Protocol Buffers"),
        ("hi", "image/png", "bytes"),
    ],
)
def test_a_payload_that_does_not_fit_its_type(payload: object, content_type: str, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        encode(payload, content_type)


def test_what_no_header_can_hold_is_an_error_of_the_sdk() -> None:
    with pytest.raises(InvalidMessage, match="line break"):
        compose(
            encode("hi"),
            sender="a@b",
            to=["c@d"],
            subject="one\ntwo",
            message_id="<x@b>",
            context=CONTEXT,
            workflow=None,
            answered=None,
            headers={},
        )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "is the node running?"),
        (socket.gaierror(-2, "Name or service not known"), "no such host"),
        (TimeoutError(), "no answer"),
        (ssl.SSLCertVerificationError(1, "x"), "ca.pem"),
        (OSError(), "OSError"),
    ],
)
def test_why_there_is_no_connection_is_said_in_words(error: OSError, says: str) -> None:
    assert says in reason(error)
