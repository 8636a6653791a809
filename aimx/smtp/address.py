"""The arguments of MAIL and RCPT: paths, mailboxes, parameters (RFC 5321 §4.1.2, §4.1.1.11). Pure and linear."""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from aimx.identity.addresses import MAX_DOMAIN, MAX_LOCAL

MAX_PATH = 256
"""RFC 5321 §4.5.3.1.3, octets with the angle brackets."""

# Every repetition is possessive and every branch begins differently: no input makes these slow.
_PATH = re.compile(r' *+<((?:"(?:[^"\\]|\\.)*+"|[^<>"])*+)>(?: ++(.*+))?+')
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~\x80-\U0010ffff]|\\[ -~])*+"')
_DOT_STRING = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]++(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]++)*+"
)
_DOMAIN = re.compile(r"[A-Za-z0-9\x80-\U0010ffff-]++(?:\.[A-Za-z0-9\x80-\U0010ffff-]++)*+")
_LITERAL = re.compile(r"\[[!-Z^-~]++\]")
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*+)(?:=([!-<>-~\x80-\U0010ffff]++))?+")


class BadPath(ValueError):
    """No path, or one that is too long. The text is fit to be sent."""


class BadParameter(ValueError):
    """Parameters that do not follow the grammar, or come twice. The text is fit to be sent."""


class Path(NamedTuple):
    """One mailbox, normalised; empty for the null path `<>`."""

    address: str
    parameters: dict[str, str | None]
    """By upper-case keyword; None for one without a value."""

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]


def parse_path(argument: str, default_domain: str) -> Path:
    """What follows `MAIL FROM:` or `RCPT TO:`. Raises BadPath, BadParameter.

    >>> parse_path("<Planner@Fabric.Local> SIZE=10", "fabric.local")
    Path(address='planner@fabric.local', parameters={'SIZE': '10'})
    """
    match = _PATH.fullmatch(argument)
    if match is None:
        raise BadPath("write the address in angle brackets: <name@domain>")
    path, rest = match.groups()
    if len(path.encode()) + 2 > MAX_PATH:
        raise BadPath(f"a path has at most {MAX_PATH} octets")
    return Path(_mailbox(path, default_domain) if path else "", _parameters(rest) if rest else {})


@lru_cache(4096)
def _mailbox(path: str, default_domain: str) -> str:
    if path.startswith("@"):
        # A source route is accepted and ignored (RFC 5321 §4.1.1.3, appendix C).
        _, colon, path = path.partition(":")
        if not colon:
            raise BadPath("a source route ends with a colon")
    if path.lower() == "postmaster":
        return f"postmaster@{default_domain}"  # RFC 5321 §4.5.1
    local, at, domain = path.rpartition("@")
    if not at:
        raise BadPath("the address has no domain")
    if len(local.encode()) > MAX_LOCAL or len(domain.encode()) > MAX_DOMAIN:
        raise BadPath(f"at most {MAX_LOCAL} octets before the @ and {MAX_DOMAIN} after it")
    if not _DOT_STRING.fullmatch(local):
        if not _QUOTED.fullmatch(local):
            raise BadPath("the part before the @ is malformed")
        plain = re.sub(r"\\(.)", r"\1", local[1:-1])
        if _DOT_STRING.fullmatch(plain):
            local = plain  # RFC 5321 §4.1.2: quoting what needs none does not make another mailbox
    if not _DOMAIN.fullmatch(domain) and not _LITERAL.fullmatch(domain):
        raise BadPath("the domain is malformed")
    return unicodedata.normalize("NFC", f"{local}@{domain}").lower()


def _parameters(text: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for word in text.split():
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise BadParameter("a parameter is KEYWORD or KEYWORD=value")
        keyword = match[1].upper()
        if keyword in found:
            raise BadParameter(f"{keyword} is given twice")
        found[keyword] = match[2]
    return found
