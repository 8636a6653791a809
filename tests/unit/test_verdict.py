"""For now or for good, and about whom: the one table."""

import pytest

from aimx.delivery.transport import Later, Never
from aimx.delivery.verdict import Stage, of_http, of_reply


@pytest.mark.parametrize(
    ("code", "text", "stage", "status", "everybody"),
    [
        (450, "4.2.1 busy", "rcpt", "4.2.1", False),
        (451, "later", "end", "4.3.0", True),
        (421, "4.7.0 too many", "mail", "4.7.0", True),
        (452, "4.3.1 full", "mail", "4.3.1", True),
        (451, "4.7.1 greylisted", "rcpt", "4.7.1", False),
        (450, "5.1.1 at odds with itself", "rcpt", "4.1.1", False),
        (554, "5.7.1 not you", "greeting", "4.7.1", True),
        (535, "5.7.8 wrong password", "auth", "4.7.8", True),
        (552, "too many recipients", "rcpt", "4.5.3", False),
    ],
)
def test_for_now(code: int, text: str, stage: Stage, status: str, everybody: bool) -> None:
    found = of_reply(code, [text], stage, "mx.b.example")
    assert isinstance(found, Later)
    assert (found.status, found.everybody) == (status, everybody)


@pytest.mark.parametrize(
    ("code", "text", "stage", "status"),
    [
        (550, "5.1.1 nobody", "rcpt", "5.1.1"),
        (550, "nobody", "rcpt", "5.1.1"),
        (550, "4.1.1 at odds with itself", "rcpt", "5.1.1"),
        (552, "5.3.4 too large", "end", "5.3.4"),
        (554, "no", "data", "5.0.0"),
        (599, "5.9999.1 nonsense", "mail", "5.0.0"),
    ],
)
def test_for_good(code: int, text: str, stage: Stage, status: str) -> None:
    found = of_reply(code, [text], stage, "mx.b.example")
    assert isinstance(found, Never)
    assert found.status == status
    assert found.said == f"{code} {text}"


def test_http() -> None:
    assert isinstance(of_http(503, "h", 7.0), Later)
    assert isinstance(of_http(429, "h"), Later)
    assert isinstance(of_http(410, "h"), Never)
