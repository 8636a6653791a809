"""IMAP SEARCH keys as data (RFC 3501 §6.4.4), so that a store can answer in SQL what SQL can answer.

A store answers with candidates and says whether they are exact. Keys it cannot decide (header and text keys) it treats
as "may hold", under NOT as well; the caller then evaluates the whole tree on the candidates.
"""

from dataclasses import dataclass
from typing import Literal

Ranges = tuple[tuple[int, int], ...]
"""Inclusive ranges of UIDs, ascending, not touching."""


@dataclass(frozen=True, slots=True)
class Everything:
    """ALL."""


@dataclass(frozen=True, slots=True)
class Uids:
    """UID set; sequence numbers are turned into UIDs by the session before they come here."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class HasFlag:
    r"""A system flag (`\Seen`) or keyword is set. UNSEEN is Not(HasFlag("\\Seen"))."""

    flag: str


@dataclass(frozen=True, slots=True)
class Recent:
    r"""RECENT; `since_uid` is the first UID that is \Recent in this session."""

    since_uid: int


@dataclass(frozen=True, slots=True)
class Internal:
    """BEFORE, ON, SINCE on the internal date: `low_ms` <= t < `high_ms` (None: open)."""

    low_ms: int | None
    high_ms: int | None


@dataclass(frozen=True, slots=True)
class Size:
    """LARGER n (size > n) and SMALLER n (size < n), in octets."""

    op: Literal[">", "<"]
    octets: int


@dataclass(frozen=True, slots=True)
class Header:
    """HEADER, FROM, TO, CC, BCC, SUBJECT: the field holds `text`, case-insensitive; empty text: the field is there."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """BODY (body only) and TEXT (header or body)."""

    where: Literal["body", "text"]
    text: str


@dataclass(frozen=True, slots=True)
class Sent:
    """SENTBEFORE, SENTON, SENTSINCE on the Date field, as proleptic ordinals: `low` <= day < `high`."""

    low: int | None
    high: int | None


@dataclass(frozen=True, slots=True)
class Not:
    key: "SearchKey"


@dataclass(frozen=True, slots=True)
class And:
    keys: tuple["SearchKey", ...]


@dataclass(frozen=True, slots=True)
class Or:
    keys: tuple["SearchKey", ...]


SearchKey = Everything | Uids | HasFlag | Recent | Internal | Size | Header | Text | Sent | Not | And | Or
