"""Whose name an agent may send under: its own, in the envelope and in the header.

`MAIL FROM` must be the agent's own address (the null path is the node's, for its DSNs), and so must the one address of
`From:`; a `Sender:`, where there is one, too. A message without `From:` is not refused here.
"""

import re
from collections.abc import Sequence

from aimx.identity.addresses import normalise

_BARE = re.compile(r"[^\s()<>,;:\"\\@]++@[^\s()<>,;:\"\\@]++")
"""An address and nothing else, as most are written."""


def envelope_refusal(mail_from: str, agent: str) -> str | None:
    """Why `agent` may not say `MAIL FROM:<mail_from>`, or None. Both normalised."""
    if mail_from == agent:
        return None
    if not mail_from:
        return f"the null sender is the node's own; send as <{agent}>"
    return f"you are {agent}; send as <{agent}>"


def header_refusal(field: str, values: Sequence[str], agent: str) -> str | None:
    """Why `agent` may not send with these unfolded values of `From` or `Sender`, or None.

    More than one address is refused, and so is what two readers could read differently: the name that is shown must be
    the name that was proved.
    """
    if not values:
        return None
    address = sole_address(values[0]) if len(values) == 1 else None
    if address is not None and normalise(address, "") == agent:
        return None
    return f"{field} must be your own address, <{agent}>, and nothing else"


def sole_address(value: str) -> str | None:
    """The address in a field that holds exactly one mailbox (RFC 5322 §3.4), else None. Linear.

    Python's own `email.utils.getaddresses` recurses on nested comments, and its versions disagree about odd input.

    >>> sole_address('"Planner, the" (it plans) <planner@fabric.local>')
    'planner@fabric.local'
    >>> sole_address("planner@fabric.local, critic@fabric.local")
    """
    if _BARE.fullmatch(value):
        return value
    plain: list[str] = []  # outside angle brackets, quoted strings kept as one mark
    angle: list[str] | None = None
    depth, at, size, closed = 0, 0, len(value), False
    while at < size:
        char = value[at]
        at += 1
        if depth:
            if char == "\\":
                at += 1
            depth += (char == "(") - (char == ")")
        elif char == "(":
            depth = 1
        elif char == '"':
            end = _end_of_quotes(value, at)
            if end < 0 or closed:
                return None
            (plain if angle is None else angle).append(value[at - 1 : end])
            at = end
        elif angle is not None and not closed:
            if char == ">":
                closed = True
            elif char in "<,;":
                return None
            else:
                angle.append(char)
        elif char == "<" and not closed:
            angle = []
        elif char in "<>,;:" or (closed and not char.isspace()):
            return None
        else:
            plain.append(char)
    if depth or (angle is not None and not closed):
        return None
    if angle is None:
        address = "".join(plain).strip()
    else:
        if "@" in (text for text in plain if len(text) == 1):
            return None  # `critic@a <planner@a>`: an address for a name
        address = "".join(angle).strip()
    return address if "@" in address and not any(char.isspace() for char in address) else None


def _end_of_quotes(value: str, at: int) -> int:
    """Where the quoted string that began before `at` is over; -1 if never."""
    while at < len(value):
        if value[at] == "\\":
            at += 1
        elif value[at] == '"':
            return at + 1
        at += 1
    return -1
