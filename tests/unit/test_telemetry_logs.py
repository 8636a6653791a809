"""Logs: one line an event, tied to its span, without secrets."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from aimx.telemetry import logs
from aimx.telemetry.context import Context

CONTEXT = Context(b"\x12" * 16, b"\x34" * 8)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def written(*, json_lines: bool = True, **extra: object) -> str:
    stream = io.StringIO()
    logs.configure("debug", stream, json_lines=json_lines)
    logging.getLogger("aimx.test").info("message accepted", extra=extra)
    return stream.getvalue()


def test_a_line_is_json_and_carries_its_span() -> None:
    with logs.bound(CONTEXT):
        fields = json.loads(written(eid="01J", size=7))
    assert fields["msg"] == "message accepted"
    assert fields["level"] == "info"
    assert (fields["trace_id"], fields["span_id"]) == ("12" * 16, "34" * 8)
    assert (fields["eid"], fields["size"]) == ("01J", 7)
    assert fields["ts"].endswith("Z")
    assert "trace_id" not in json.loads(written())
    assert json.loads(written(context=CONTEXT))["span_id"] == "34" * 8


@pytest.mark.parametrize("name", ["password", "Authorization", "admin_token", "client_secret", "api_key", "key"])
def test_secrets_are_masked(name: str) -> None:
    line = written(**{name: "hunter2"})
    assert "hunter2" not in line
    assert json.loads(line)[name] == "***"


def test_a_peers_bytes_cannot_write_a_line_of_their_own() -> None:
    for json_lines in (True, False):
        stream = io.StringIO()
        logs.configure("info", stream, json_lines=json_lines)
        logging.getLogger("aimx.test").info("said %s", "x\r\nlevel=error forged\x1b[2J", extra={"helo": "a b\nc"})
        text = stream.getvalue()
        assert text.count("\n") == 1
        assert "\x1b" not in text
        assert "\r" not in text


def test_people_get_a_readable_line() -> None:
    with logs.bound(CONTEXT):
        line = written(json_lines=False, eid="01J", text="two words")
    assert "message accepted" in line
    assert 'eid=01J text="two words"' in line
    assert "trace_id=" + "12" * 16 in line


def test_an_exception_is_one_json_line() -> None:
    stream = io.StringIO()
    logs.configure("info", stream, json_lines=True)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logging.getLogger("aimx.test").exception("failed", exc_info=sys.exc_info())
    assert stream.getvalue().count("\n") == 1
    assert "RuntimeError: boom" in json.loads(stream.getvalue())["exception"]


def test_long_values_and_bytes_are_cut() -> None:
    fields = json.loads(written(blob=b"\xff" * 1000, text="x" * 10_000))
    assert fields["blob"] == "1000 bytes"
    assert len(fields["text"]) < 2100


def test_an_absent_collector_does_not_fill_the_log() -> None:
    stream = io.StringIO()
    logs.configure("info", stream, json_lines=True)
    for _ in range(50):
        logging.getLogger("opentelemetry.exporter.x").error("unreachable")
    assert stream.getvalue().count("\n") == 1
