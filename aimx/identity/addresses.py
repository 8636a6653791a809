"""Names and addresses: what an agent may be called, and one spelling for each address.

Everywhere inside, an address is `local@domain`, lower-case, NFC. RFC 5321 §2.4 lets a local part be case-sensitive and
at the same time warns against it; AIMX's own are not.
"""

import re
import unicodedata

MAX_LOCAL = 64  # RFC 5321 §4.5.3.1.1, octets
MAX_DOMAIN = 255  # RFC 5321 §4.5.3.1.2, octets

RESERVED = frozenset({"mailer-daemon"})
"""Names the node itself sends under."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._+-]{0,62}[a-z0-9])?")


class BadName(ValueError):
    """A name no agent may have. The text says what to write instead."""


def agent_address(name: str, domains: tuple[str, ...]) -> str:
    """The address of an agent given as `name` or `name@domain`. Raises BadName.

    >>> agent_address("Planner", ("fabric.local",))
    'planner@fabric.local'
    """
    local, at, domain = name.strip().lower().rpartition("@")
    if not at:
        local, domain = domain, domains[0]
    if domain not in domains:
        raise BadName(f"{domain!r} is not served here; use one of: {', '.join(domains)}")
    if not _NAME.fullmatch(local) or ".." in local:
        raise BadName(
            f"{local!r} is no agent name; use 1 to 64 of a-z, 0-9 and . _ + -, beginning and ending with a-z or 0-9"
        )
    if local in RESERVED:
        raise BadName(f"{local!r} is the node's own name; choose another")
    return f"{local}@{domain}"


def normalise(address: str, default_domain: str) -> str:
    """One spelling for an address or log-in name. Never fails: what nobody is called finds nobody.

    >>> normalise(" Planner ", "fabric.local")
    'planner@fabric.local'
    """
    text = unicodedata.normalize("NFC", address.strip()).lower()
    return text if "@" in text else f"{text}@{default_domain}"
