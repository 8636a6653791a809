"""What MAIL and RCPT may be given with: checked here, each by its RFC. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from aimx.smtp.errors import ProtocolError, Refused

Parameters = Mapping[str, str | None]

_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"
_ENVID = re.compile(rf"{_XTEXT}{{1,100}}", re.ASCII)
_ORCPT = re.compile(rf"[A-Za-z0-9-]{{1,40}};{_XTEXT}{{1,500}}", re.ASCII)
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})


@dataclass(frozen=True, slots=True)
class MailParameters:
    utf8: bool = False
    """RFC 6531."""
    priority: int | None = None
    """RFC 6710."""
    reports: dict[str, str] = field(default_factory=dict)
    """RFC 3461: `ret` and `envid`, as they are passed on."""


NONE = MailParameters()


def of_mail(parameters: Parameters, max_size: int) -> MailParameters:
    """Raises ProtocolError, Refused (the message is too large)."""
    if not parameters:
        return NONE
    priority: int | None = None
    reports: dict[str, str] = {}
    for keyword, value in parameters.items():
        match keyword:
            case "SIZE" if value and value.isdecimal() and len(value) <= 20:  # RFC 1870 §3
                if int(value) > max_size:
                    raise Refused(552, "5.3.4", f"a message has at most {max_size} octets")
            case "BODY" if value and value.upper() in ("7BIT", "8BITMIME"):  # RFC 6152
                pass
            case "SMTPUTF8" if value is None:  # RFC 6531
                pass
            case "AUTH" if value:  # RFC 4954 §5: who sends is not trusted to name another; as if AUTH=<>
                pass
            case "MT-PRIORITY" if value and _is_priority(value):  # RFC 6710 §5
                priority = int(value)
            case "RET" if value and value.upper() in ("FULL", "HDRS"):  # RFC 3461 §4.3
                reports["ret"] = value.upper()
            case "ENVID" if value and _ENVID.fullmatch(value):  # RFC 3461 §4.4
                reports["envid"] = value
            case "SIZE" | "BODY" | "SMTPUTF8" | "AUTH" | "MT-PRIORITY" | "RET" | "ENVID":
                raise ProtocolError(501, "5.5.4", f"{keyword} has a wrong value")
            case _:
                raise ProtocolError(555, "5.5.4", "parameter not recognised")
    return MailParameters("SMTPUTF8" in parameters, priority, reports)


def of_rcpt(parameters: Parameters) -> dict[str, str]:
    """RFC 3461: `notify` and `orcpt`, as they are passed on. Raises ProtocolError."""
    reports: dict[str, str] = {}
    for keyword, value in parameters.items():
        match keyword:
            case "NOTIFY" if value and (notify := _notify(value)):
                reports["notify"] = notify
            case "ORCPT" if value and _ORCPT.fullmatch(value):
                reports["orcpt"] = value
            case "NOTIFY" | "ORCPT":
                raise ProtocolError(501, "5.5.4", f"{keyword} has a wrong value")
            case _:
                raise ProtocolError(555, "5.5.4", "parameter not recognised")
    return reports


def _notify(value: str) -> str:
    """RFC 3461 §4.1: `NEVER` alone, or each of the others at most once. Empty: malformed."""
    words = value.upper().split(",")
    fine = words == ["NEVER"] or (set(words) <= _NOTIFY and len(set(words)) == len(words))
    return ",".join(words) if fine else ""


def _is_priority(value: str) -> bool:
    return value.removeprefix("-").isdecimal() and len(value) <= 2 and -9 <= int(value) <= 9
