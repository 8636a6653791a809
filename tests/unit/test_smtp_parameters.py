"""What MAIL and RCPT may be given with (RFC 3461, and those before it)."""

import pytest

from aimx.smtp.address import parse_path
from aimx.smtp.errors import ProtocolError, Refused
from aimx.smtp.parameters import of_mail, of_rcpt


def mail(words: str) -> object:
    return of_mail(parse_path(f"<a@b.example> {words}", "b.example").parameters, 1000)


def rcpt(words: str) -> dict[str, str]:
    return of_rcpt(parse_path(f"<a@b.example> {words}", "b.example").parameters)


def test_what_is_asked_for_is_kept_to_be_passed_on() -> None:
    found = mail("SIZE=5 BODY=8BITMIME SMTPUTF8 MT-PRIORITY=-3 ret=hdrs ENVID=QQ+2Bx=1".replace("x=1", "x"))
    assert (found.utf8, found.priority) == (True, -3)  # type: ignore[attr-defined]
    assert found.reports == {"ret": "HDRS", "envid": "QQ+2Bx"}  # type: ignore[attr-defined]
    assert rcpt("NOTIFY=success,DELAY ORCPT=rfc822;bob+40x@c.example") == {
        "notify": "SUCCESS,DELAY",
        "orcpt": "rfc822;bob+40x@c.example",
    }


@pytest.mark.parametrize(
    "words", ["RET=ALL", "RET", "ENVID=a+zz", "ENVID=" + "a" * 101, "SIZE=x", "BODY=BINARYMIME", "MT-PRIORITY=10"]
)
def test_wrong_values_of_mail_are_refused(words: str) -> None:
    with pytest.raises(ProtocolError) as error:
        mail(words)
    assert error.value.reply[:2] == (501, "5.5.4")


@pytest.mark.parametrize(
    "words",
    [
        "NOTIFY=NEVER,SUCCESS",
        "NOTIFY=SUCCESS,SUCCESS",
        "NOTIFY=,",
        "NOTIFY",
        "ORCPT=bob@c.example",
        "ORCPT=rfc822;a+zz",
    ],
)
def test_wrong_values_of_rcpt_are_refused(words: str) -> None:
    with pytest.raises(ProtocolError) as error:
        rcpt(words)
    assert error.value.reply[:2] == (501, "5.5.4")


def test_unknown_words_and_too_large_a_size() -> None:
    with pytest.raises(ProtocolError):
        mail("FUTURE=1")
    with pytest.raises(ProtocolError):
        rcpt("FUTURE=1")
    with pytest.raises(Refused):
        mail("SIZE=1001")
