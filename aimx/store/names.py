"""Mailbox names: Unicode, `/` between levels (RFC 3501 §5.1, §6.3)."""

from aimx.store.contract import INBOX

MOST = 10_000
"""Mailboxes of an agent, and names it subscribes to: each LIST and LSUB answers with all of them at once."""


def canonical(name: str) -> str:
    """INBOX in upper case, as the first level of others too (RFC 3501 §5.1)."""
    first, slash, rest = name.partition("/")
    return INBOX + slash + rest if first.upper() == INBOX else name


def superiors(name: str) -> list[str]:
    """Highest first: of `a/b/c` these are `a` and `a/b`."""
    levels = name.split("/")
    return ["/".join(levels[:depth]) for depth in range(1, len(levels))]


def below(name: str) -> tuple[str, str]:
    """The inferiors of a name are the names between these two, in order of code points: `0` follows `/`."""
    return name + "/", name + "0"


def moved(old: str, new: str, names: list[str]) -> list[tuple[str, str]]:
    """(name now, name then) of a mailbox and its inferiors, in an order in which no two ever bear one name.

    Deepest first when going down (a to a/b), else the new name of one may be the old one of another.
    """
    pairs = [(name, new + name[len(old) :]) for name in names]
    return sorted(pairs, key=lambda pair: len(pair[0]), reverse=len(new) > len(old))
