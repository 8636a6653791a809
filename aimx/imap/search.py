"""SEARCH: keys from tokens to data, and the keys that no database answers, decided on the candidates' text.

Criteria are kept in postfix order (operands before their operator), so that neither reading nor deciding them recurses:
5,000 nested ORs cost what 5,000 ORs in a row cost. RFC 3501 §6.4.4.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple

from aimx.imap import mime
from aimx.imap.errors import Bad, No
from aimx.imap.grammar import Cursor, SequenceSet
from aimx.message.header import HeaderBlock
from aimx.message.header import text as decode
from aimx.store.search import (
    And,
    Everything,
    HasFlag,
    Header,
    Internal,
    Not,
    Or,
    Ranges,
    Recent,
    SearchKey,
    Sent,
    Size,
    Text,
    Uids,
)

MAX_DEPTH = 50
"""Of what is left when ORs of ORs and ANDs of ANDs are joined; a store may recurse that far."""
MAX_KEYS = 20_000
MAX_TEXTS = 200
"""Keys that look into the messages themselves: each costs a pass over every candidate's text."""
_MAX_UID = 1 << 32
_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Numbers:
    """A sequence set as a key, not yet turned into UIDs."""

    by_uid: bool
    messages: SequenceSet


class Join(NamedTuple):
    """An operator over the `size` operands before it."""

    op: Literal["and", "or", "not"]
    size: int


Leaf = Everything | Uids | HasFlag | Recent | Internal | Size | Header | Text | Sent
Criteria = tuple[Leaf | Numbers | Join, ...]


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """An operator whose operands are being read. `needs` is None for a list, which ends with its parenthesis."""

    op: Literal["and", "or", "not"]
    needs: int | None
    has: int = 0


def parse_criteria(cursor: Cursor) -> Criteria:
    """What follows `SEARCH `, to the end of the command."""
    charset, word = "", ""
    if not cursor.at_sequence_set() and cursor.peek() != b"(":
        word = cursor.keyword()
        if word == "CHARSET":
            cursor.space()
            charset = cursor.astring().decode("latin-1").upper()
            cursor.space()
            word = ""
    if charset not in ("", "US-ASCII", "UTF-8"):
        raise No("that charset is not supported", "BADCHARSET (US-ASCII UTF-8)")
    return _parse_keys(cursor, word, "ascii" if charset == "US-ASCII" else "utf-8")


def _parse_keys(cursor: Cursor, word: str, encoding: str) -> Criteria:
    """`word` is the first key's name when the caller has taken it already."""
    out: list[Leaf | Numbers | Join] = []
    stack = [_Open("and", None)]
    looks = 0
    while True:
        top = stack[-1]
        if not word and cursor.accept(b"("):
            stack.append(_Open("and", None))
            continue
        word = word or ("" if cursor.at_sequence_set() else cursor.keyword())
        if word in ("NOT", "OR"):
            stack.append(_Open("not", 1) if word == "NOT" else _Open("or", 2))
            cursor.space()
            word = ""
            continue
        top.has += 1
        if word:
            out.extend(_KEYS[word](cursor, encoding) if word in _KEYS else _unknown())
        else:
            out.append(Numbers(False, cursor.sequence_set()))
        word = ""
        looks += isinstance(out[-1], Header | Text | Sent)
        if len(out) > MAX_KEYS or looks > MAX_TEXTS:
            raise No("too many search keys", "LIMIT")
        # Close what this key completes.
        while len(stack) > 1 and (
            stack[-1].has == stack[-1].needs or (stack[-1].needs is None and cursor.accept(b")"))
        ):
            closed = stack.pop()
            out.append(Join(closed.op, closed.has))
            stack[-1].has += 1
        if len(stack) == 1 and cursor.at_end():
            return (*out, Join("and", stack[0].has))
        cursor.space()


def _unknown() -> Criteria:
    raise Bad("unknown search key")


def _text(cursor: Cursor, encoding: str) -> str:
    cursor.space()
    try:
        return cursor.astring().decode(encoding)
    except UnicodeDecodeError as error:
        raise Bad("search text is not in the given charset") from error


def _day(cursor: Cursor) -> int:
    cursor.space()
    return cursor.date()


def _midnight(day: int) -> int:
    """The day's begin in Unix milliseconds; days are UTC days, as INTERNALDATE is written."""
    return (day - _EPOCH) * 86_400_000


def _number(cursor: Cursor) -> int:
    cursor.space()
    return cursor.number()


def _flag(cursor: Cursor) -> str:
    cursor.space()
    return cursor.flag()


def _is(flag: str) -> Callable[[Cursor, str], Criteria]:
    return lambda cursor, encoding: (HasFlag(flag),)


def _is_not(flag: str) -> Callable[[Cursor, str], Criteria]:
    return lambda cursor, encoding: (HasFlag(flag), Join("not", 1))


def _field(name: str) -> Callable[[Cursor, str], Criteria]:
    return lambda cursor, encoding: (Header(name, _text(cursor, encoding)),)


def _header(cursor: Cursor, encoding: str) -> Criteria:
    cursor.space()
    name = cursor.astring().decode("latin-1")
    return (Header(name.lower(), _text(cursor, encoding)),)


def _uid(cursor: Cursor, encoding: str) -> Criteria:
    cursor.space()
    return (Numbers(True, cursor.sequence_set()),)


def _internal(low: int | None, high: int | None) -> Criteria:
    """From begin of day `low` to begin of day `high`."""
    return (Internal(None if low is None else _midnight(low), None if high is None else _midnight(high)),)


def _on(cursor: Cursor) -> Criteria:
    day = _day(cursor)
    return _internal(day, day + 1)


def _sent_on(cursor: Cursor) -> Criteria:
    day = _day(cursor)
    return (Sent(day, day + 1),)


_KEYS: dict[str, Callable[[Cursor, str], Criteria]] = {
    "ALL": lambda cursor, encoding: (Everything(),),
    "ANSWERED": _is("\\Answered"),
    "DELETED": _is("\\Deleted"),
    "DRAFT": _is("\\Draft"),
    "FLAGGED": _is("\\Flagged"),
    "SEEN": _is("\\Seen"),
    "UNANSWERED": _is_not("\\Answered"),
    "UNDELETED": _is_not("\\Deleted"),
    "UNDRAFT": _is_not("\\Draft"),
    "UNFLAGGED": _is_not("\\Flagged"),
    "UNSEEN": _is_not("\\Seen"),
    "KEYWORD": lambda cursor, encoding: (HasFlag(_flag(cursor)),),
    "UNKEYWORD": lambda cursor, encoding: (HasFlag(_flag(cursor)), Join("not", 1)),
    # Which UIDs are \Recent is the session's to know: `numbered` puts it in.
    "RECENT": lambda cursor, encoding: (Recent(0),),
    "OLD": lambda cursor, encoding: (Recent(0), Join("not", 1)),
    "NEW": lambda cursor, encoding: (Recent(0), HasFlag("\\Seen"), Join("not", 1), Join("and", 2)),
    "BEFORE": lambda cursor, encoding: _internal(None, _day(cursor)),
    "ON": lambda cursor, encoding: _on(cursor),
    "SINCE": lambda cursor, encoding: _internal(_day(cursor), None),
    "SENTBEFORE": lambda cursor, encoding: (Sent(None, _day(cursor)),),
    "SENTON": lambda cursor, encoding: _sent_on(cursor),
    "SENTSINCE": lambda cursor, encoding: (Sent(_day(cursor), None),),
    "LARGER": lambda cursor, encoding: (Size(">", _number(cursor)),),
    "SMALLER": lambda cursor, encoding: (Size("<", _number(cursor)),),
    "BCC": _field("bcc"),
    "CC": _field("cc"),
    "FROM": _field("from"),
    "SUBJECT": _field("subject"),
    "TO": _field("to"),
    "HEADER": _header,
    "BODY": lambda cursor, encoding: (Text("body", _text(cursor, encoding)),),
    "TEXT": lambda cursor, encoding: (Text("text", _text(cursor, encoding)),),
    "UID": _uid,
}


# --- for the store ---------------------------------------------------------------------------------------------------


def numbered(criteria: Criteria, ranges: Callable[[bool, SequenceSet], Ranges], recent: Ranges) -> Criteria:
    r"""The criteria with sequence sets and RECENT as UIDs: only the session's view knows them.

    `ranges(by_uid, set)` may raise Bad for numbers that are not there.
    """
    return tuple(
        Uids(ranges(token.by_uid, token.messages))
        if isinstance(token, Numbers)
        else Uids(recent)
        if isinstance(token, Recent)
        else token
        for token in criteria
    )


def tree(criteria: Criteria) -> SearchKey:
    """What the store is asked. `criteria` have been numbered."""
    stack: list[tuple[SearchKey, int]] = []  # key, depth
    for token in criteria:
        match token:
            case Join("not", _):
                key, depth = stack.pop()
                stack.append((key.key, depth - 1) if isinstance(key, Not) else (Not(key), depth + 1))
            case Join(op, size):
                stack[-size:] = [_joined(op, stack[-size:])]
            case Numbers():
                raise AssertionError("criteria must be numbered first")
            case _:
                stack.append((token, 1))
        if stack[-1][1] > MAX_DEPTH:
            raise No("search keys are nested too deeply", "LIMIT")
    return stack[0][0]


def _joined(op: Literal["and", "or", "not"], operands: list[tuple[SearchKey, int]]) -> tuple[SearchKey, int]:
    """An operator over its operands; those of the same kind are taken apart into it."""
    if len(operands) == 1:
        return operands[0]
    kind: type[And] | type[Or] = And if op == "and" else Or
    keys: list[SearchKey] = []
    depth = 0
    for key, below in operands:
        if isinstance(key, kind):
            keys.extend(key.keys)
            below -= 1
        else:
            keys.append(key)
        depth = max(depth, below)
    return kind(tuple(keys)), depth + 1


# --- on the candidates -----------------------------------------------------------------------------------------------


class Needs(NamedTuple):
    """What of a message must be read to decide the rest."""

    header: bool
    body: bool


def needs(criteria: Criteria) -> Needs:
    body = any(isinstance(token, Text) for token in criteria)
    return Needs(body or any(isinstance(token, Header | Sent) for token in criteria), body)


class Candidate(NamedTuple):
    """A message as SEARCH sees it. The texts come case-folded; each is made once at most, when first asked for."""

    uid: int
    flags: frozenset[str]
    internal_ms: int
    size: int
    header: HeaderBlock
    field_texts: Callable[[str], list[str]]
    """Of every field of that name."""
    header_text: Callable[[], str]
    body_text: Callable[[], str]


def holds(criteria: Criteria, candidate: Candidate) -> bool:
    """Decide the whole of the (numbered) criteria for one message."""
    stack: list[bool] = []
    for token in criteria:
        if isinstance(token, Join):
            operands = stack[-token.size :]
            stack[-token.size :] = [
                all(operands) if token.op == "and" else any(operands) if token.op == "or" else not operands[0]
            ]
        else:
            stack.append(_leaf_holds(token, candidate))
    return stack[0]


def _leaf_holds(key: Leaf | Numbers, candidate: Candidate) -> bool:
    match key:
        case Everything():
            return True
        case Uids(ranges):
            place = bisect_right(ranges, (candidate.uid, _MAX_UID)) - 1
            return place >= 0 and ranges[place][0] <= candidate.uid <= ranges[place][1]
        case HasFlag(flag):
            return flag.lower() in (held.lower() for held in candidate.flags)
        case Internal(low_ms, high_ms):
            return (low_ms is None or candidate.internal_ms >= low_ms) and (
                high_ms is None or candidate.internal_ms < high_ms
            )
        case Size(op, octets):
            return candidate.size > octets if op == ">" else candidate.size < octets
        case Header(field, text):
            wanted = text.casefold()
            return any(wanted in value for value in candidate.field_texts(field))
        case Sent(low, high):
            day = mime.sent_day(candidate.header)
            return day is not None and (low is None or day >= low) and (high is None or day < high)
        case Text(where, text):
            wanted = text.casefold()
            return (where == "text" and wanted in candidate.header_text()) or wanted in candidate.body_text()
        case Recent() | Numbers():
            raise AssertionError("criteria must be numbered first")


def texts(criteria: Criteria) -> set[bytes]:
    """What BODY and TEXT keys look for, as lower-case UTF-8."""
    return {token.text.lower().encode() for token in criteria if isinstance(token, Text)}


def header_text(header: bytes, block: HeaderBlock) -> str:
    """What SEARCH TEXT looks through in a header: as it stands, and decoded; case-folded."""
    decoded = "\n".join(decode(field.value) for field in block.fields if b"=?" in field.raw)
    return (header.decode("utf-8", "replace") + "\n" + decoded).casefold()
