"""Temporary or permanent, about one recipient or about the other side as a whole: decided here and nowhere else.

The reply code's first digit decides (RFC 5321 §4.2.1), the enhanced code (RFC 3463) says what it is about. Where both
are at odds the reply code wins. Against the letter of 5yz, the mail waits where trying again is likely to help:

- before MAIL, a refusal is about us or about that server, not about the message: an administrator can mend it in time;
- 552 to RCPT means too many recipients (RFC 5321 §4.5.3.1.10).
"""

import re
from typing import Literal

from aimx.delivery.transport import Later, Never

Stage = Literal["greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "end"]
"""What a reply answers; `end` is the end of the data."""

_BEFORE_MAIL = frozenset({"greeting", "ehlo", "starttls", "auth"})
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s|$)")
_PLAIN = {421: "3.2", 450: "2.0", 451: "3.0", 452: "3.1", 454: "7.0", 550: "1.1", 552: "3.4", 553: "1.3", 554: "0.0"}
"""What a bare code is taken to mean, without its class."""


def of_reply(code: int, lines: list[str], stage: Stage, host: str) -> Later | Never:
    """What a negative SMTP or LMTP reply means. `lines`: its texts, codes taken off."""
    said = " ".join(lines)[:500]
    found = _ENHANCED.match(said)
    too_many = code == 552 and stage == "rcpt"
    detail = found[1][2:] if found is not None else "5.3" if too_many else _PLAIN.get(code, "0.0")
    wait = code < 500 or stage in _BEFORE_MAIL or too_many
    status = f"{4 if wait else 5}.{detail}"
    text = f"{host} answered {code} {said}".rstrip()
    if not wait:
        return Never(status, status, text, code, host, f"{code} {said}")
    whole = code == 421 or stage in _BEFORE_MAIL or concerns_everybody(status)
    return Later(status, status, text, code, host, f"{code} {said}", everybody=whole)


def concerns_everybody(status: str) -> bool:
    """RFC 3463 §3: `x.3` (the system) and `x.4` (the network) befall whoever writes there; `x.1`, `x.2`, `x.6` do not,
    and of `x.5`, `x.7` and `x.0` one cannot tell, so they do not count either."""
    return status.split(".")[1] in ("3", "4")


def unreachable(reason: str, text: str, host: str = "", status: str = "4.4.1") -> Later:
    """No answer at all: no route, refused, timed out, TLS failed. `reason` is of low cardinality."""
    return Later(reason, status, text, host=host, everybody=True)


def of_http(code: int, host: str, wait: float = 0.0) -> Later | Never:
    """What an HTTP status other than 2xx means to a delivery. `wait`: seconds that `Retry-After` asks for."""
    reason, text = f"http.{code}", f"{host} answered {code}"
    if code in (408, 425, 429) or code >= 500:
        return Later(reason, "4.3.0", text, code, host, str(code), everybody=code != 425, wait=wait)
    return Never(reason, "5.3.0", text, code, host, str(code))
