"""Structured logs: one JSON object a line, key=value on a terminal; every line carries its trace and span.

    log = logging.getLogger(__name__)
    with logs.bound(span.context):
        log.info("message accepted", extra={"eid": eid, "size": n})

What `extra` names becomes a field. A field whose name says that it is a secret is masked, whatever it holds.
"""

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from aimx.telemetry.context import Context

current: ContextVar[Context | None] = ContextVar("aimx_trace_context", default=None)
"""The span that log lines of this task belong to. `extra={"context": ctx}` names another for one line."""

_SECRET = re.compile(r"passw|secret|token|authori[sz]ation|credential|cookie|private|api_?key|\bkey\b", re.IGNORECASE)
_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "context", "taskName"}
_PLAIN = re.compile(r"[^\s\"=\x00-\x1f\x7f-\x9f]+")
MAX_FIELD = 2048


@contextmanager
def bound(context: Context) -> Iterator[None]:
    """Log lines inside belong to this span."""
    token = current.set(context)
    try:
        yield
    finally:
        current.reset(token)


def configure(level: str = "info", stream: TextIO | None = None, *, json_lines: bool | None = None) -> None:
    """Send all logs of the process to `stream` (standard error). `json_lines=None`: JSON unless it is a terminal."""
    stream = sys.stderr if stream is None else stream
    as_json = not stream.isatty() if json_lines is None else json_lines
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    handler.addFilter(OncePerMinute("opentelemetry."))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These say at INFO what our own spans say better.
    for noisy in ("asyncio", "httpx", "httpcore", "uvicorn.access", "mail.log"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


class OncePerMinute(logging.Filter):
    """Of loggers below `prefix`, each lets one line a minute through: an absent collector must not fill the disk."""

    def __init__(self, prefix: str, interval_s: float = 60.0) -> None:
        super().__init__()
        self._prefix = prefix
        self._interval_s = interval_s
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(self._prefix):
            return True
        if record.created - self._last.get(record.name, 0.0) < self._interval_s:
            return False
        self._last[record.name] = record.created
        return True


class JsonFormatter(logging.Formatter):
    """`{"ts": …, "level": …, "logger": …, "msg": …, "trace_id": …, "span_id": …, …}`."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record), ensure_ascii=False, default=str, separators=(",", ":"))


class TextFormatter(logging.Formatter):
    """For people: time, level, message, then key=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        head = f"{str(fields.pop('ts'))[11:23]} {fields.pop('level')!s:<7} {_one_line(str(fields.pop('msg')))}"
        trace = fields.pop("exception", None)
        fields.pop("logger")
        tail = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
        return "\n".join(filter(None, (f"{head}  {tail}".rstrip(), trace if isinstance(trace, str) else None)))


def masked(fields: Mapping[str, object]) -> dict[str, object]:
    """The same fields with secrets masked and long strings cut."""
    return {key: "***" if _SECRET.search(key) else _short(value) for key, value in fields.items()}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    seconds, ms = divmod(int(record.created * 1000), 1000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fields: dict[str, object] = {
        "ts": f"{stamp}.{ms:03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "msg": record.getMessage(),
    }
    context = getattr(record, "context", None) or current.get()
    if isinstance(context, Context):
        fields["trace_id"] = context.trace_id.hex()
        fields["span_id"] = context.span_id.hex()
    fields.update(masked({key: value for key, value in record.__dict__.items() if key not in _OWN}))
    if record.exc_info and record.exc_info[0] is not None:
        fields["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
    return fields


def _short(value: object) -> object:
    if isinstance(value, bytes):
        value = value.hex() if len(value) <= 32 else f"{len(value)} bytes"
    if isinstance(value, str) and len(value) > MAX_FIELD:
        return value[:MAX_FIELD] + "…"
    return value


def _one_line(value: str) -> str:
    # A peer's bytes in a message must not be able to write a second log line, or move the cursor.
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: repr(m.group())[1:-1], value)


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
