"""What a client can ask for: one small type a command, and the parsers that make them from tokens (RFC 3501 §6).

`parse` is pure. Which command is allowed when is `session.py`'s business; what it means is its handler's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aimx.imap.errors import Bad, No
from aimx.imap.grammar import Cursor, Raw, SequenceSet
from aimx.imap.search import Criteria, parse_criteria
from aimx.store.contract import FlagMode

# --- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Simple:
    """A command without arguments: its name says it all."""

    name: Literal[
        "CAPABILITY", "NOOP", "LOGOUT", "STARTTLS", "NAMESPACE", "CHECK", "CLOSE", "UNSELECT", "IDLE"
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Id:
    """RFC 2971. What the client says of itself."""

    fields: tuple[tuple[bytes, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Authenticate:
    """`initial` is the BASE64 text of SASL-IR (RFC 4959), None when the client sent none."""

    mechanism: str
    initial: bytes | None


@dataclass(frozen=True, slots=True)
class Login:
    user: bytes
    password: bytes


@dataclass(frozen=True, slots=True)
class Enable:
    """RFC 5161."""

    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Select:
    mailbox: str
    examine: bool


@dataclass(frozen=True, slots=True)
class Create:
    mailbox: str
    is_level: bool
    """The name came with a delimiter at its end: only inferiors are wanted (RFC 3501 §6.3.3)."""


@dataclass(frozen=True, slots=True)
class Delete:
    mailbox: str


@dataclass(frozen=True, slots=True)
class Rename:
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Subscribe:
    mailbox: str
    on: bool


@dataclass(frozen=True, slots=True)
class List:
    reference: str
    pattern: str
    subscribed: bool
    """LSUB."""
    special_use: bool = False
    """Only mailboxes with a special use: LIST (SPECIAL-USE) … (RFC 6154 §2)."""


@dataclass(frozen=True, slots=True)
class Status:
    mailbox: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Append:
    mailbox: str
    flags: frozenset[str]
    internal_ms: int | None
    message: bytes


@dataclass(frozen=True, slots=True)
class Expunge:
    """`uids` is None for EXPUNGE, the set of UID EXPUNGE (RFC 4315 §2.1) otherwise."""

    uids: SequenceSet | None


@dataclass(frozen=True, slots=True)
class Search:
    by_uid: bool
    criteria: Criteria


@dataclass(frozen=True, slots=True)
class Section:
    """What BODY[…] names: a part by number, and what of it. `what` is empty for the whole part."""

    part: tuple[int, ...]
    what: Literal["", "HEADER", "HEADER.FIELDS", "HEADER.FIELDS.NOT", "TEXT", "MIME"]
    fields: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """BODY[section]<start.count> and the RFC822 items that are other names of it."""

    label: bytes
    """How the answer names it, without the origin octet."""
    section: Section
    peek: bool
    partial: tuple[int, int] | None = None


Item = Literal["FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODY", "BODYSTRUCTURE", "UID"] | Body


@dataclass(frozen=True, slots=True)
class Fetch:
    by_uid: bool
    messages: SequenceSet
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Store:
    by_uid: bool
    messages: SequenceSet
    mode: FlagMode
    silent: bool
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Transfer:
    """COPY and MOVE (RFC 6851)."""

    by_uid: bool
    messages: SequenceSet
    mailbox: str
    move: bool


Command = (
    Simple | Id | Authenticate | Login | Enable | Select | Create | Delete | Rename | Subscribe | List | Status | Append
    | Expunge | Search | Fetch | Store | Transfer
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """A command under its tag. `name` is as on the wire, `UID FETCH` with its prefix."""

    tag: bytes
    name: str
    command: Command


class Unparsable(Exception):
    """A command that went wrong after its tag was known."""

    def __init__(self, tag: bytes, error: Bad | No) -> None:
        super().__init__(str(error))
        self.tag = tag
        self.error = error


# --- parsing ---------------------------------------------------------------------------------------------------------


def parse(raw: Raw) -> Request:
    """Raises Unparsable with the tag to answer under, `*` where there is none."""
    cursor = Cursor(raw)
    tag = b"*"
    try:
        tag = cursor.tag()
        cursor.space()
        name = cursor.keyword()
        if name == "UID":
            cursor.space()
            name = "UID " + cursor.keyword()
        parser = _PARSERS.get(name)
        if parser is None:
            raise Bad("unknown command")
        command = parser(cursor)
        cursor.end()
        return Request(tag, name, command)
    except (Bad, No) as error:
        raise Unparsable(tag, error) from error


def _id(cursor: Cursor) -> Command:
    cursor.space()
    if not cursor.accept(b"("):
        if cursor.nstring() is not None:
            raise Bad("expected a list or NIL")
        return Id(())
    fields: list[tuple[bytes, bytes | None]] = []
    while not cursor.accept(b")"):
        if fields:
            cursor.space()
        name = cursor.string()
        cursor.space()
        fields.append((name, cursor.nstring()))
        if len(fields) > 30:
            raise Bad("at most 30 fields (RFC 2971)")
    return Id(tuple(fields))


def _authenticate(cursor: Cursor) -> Command:
    cursor.space()
    mechanism = cursor.keyword()
    if not cursor.accept(b" "):
        return Authenticate(mechanism, None)
    # "=" is the empty initial response (RFC 4959 §3).
    return Authenticate(mechanism, b"" if cursor.accept(b"=") else cursor.astring())


def _login(cursor: Cursor) -> Command:
    cursor.space()
    user = cursor.astring()
    cursor.space()
    return Login(user, cursor.astring())


def _enable(cursor: Cursor) -> Command:
    names: list[str] = []
    while cursor.accept(b" "):
        names.append(cursor.keyword())
    if not names:
        raise Bad("expected a capability")
    return Enable(tuple(names))


def _mailbox(cursor: Cursor) -> str:
    cursor.space()
    return cursor.mailbox()


def _select(cursor: Cursor, examine: bool) -> Command:
    return Select(_mailbox(cursor), examine)


def _create(cursor: Cursor) -> Command:
    name = _mailbox(cursor)
    return Create(name.removesuffix("/"), name.endswith("/"))


def _rename(cursor: Cursor) -> Command:
    old = _mailbox(cursor)
    return Rename(old, _mailbox(cursor).removesuffix("/"))


def _list(cursor: Cursor, subscribed: bool) -> Command:
    cursor.space()
    special_use = False
    if not subscribed and cursor.accept(b"("):
        # Selection options: of LIST-EXTENDED only what SPECIAL-USE brings (RFC 6154 §2).
        special_use = cursor.keyword() == "SPECIAL-USE"
        if not special_use:
            raise Bad("unknown selection option")
        cursor.expect(b") ")
    reference = cursor.list_mailbox()
    cursor.space()
    pattern = cursor.list_mailbox()
    if not subscribed and cursor.accept(b" "):
        _return_options(cursor)
    return List(reference, pattern, subscribed, special_use)


def _return_options(cursor: Cursor) -> None:
    """RETURN (SPECIAL-USE CHILDREN): both are given in every LIST response anyway."""
    if cursor.keyword() != "RETURN":
        raise Bad("expected RETURN")
    cursor.expect(b" (")
    while not cursor.accept(b")"):
        cursor.accept(b" ")
        if cursor.keyword() not in ("SPECIAL-USE", "CHILDREN"):
            raise Bad("unknown return option")


STATUS_ITEMS = ("MESSAGES", "RECENT", "UIDNEXT", "UIDVALIDITY", "UNSEEN", "SIZE", "APPENDLIMIT")


def _status(cursor: Cursor) -> Command:
    mailbox = _mailbox(cursor)
    cursor.expect(b" (")
    items = [cursor.keyword()]
    while cursor.accept(b" "):
        items.append(cursor.keyword())
    cursor.expect(b")")
    if any(item not in STATUS_ITEMS for item in items):
        raise Bad("unknown status item")
    return Status(mailbox, tuple(dict.fromkeys(items)))


def _append(cursor: Cursor) -> Command:
    mailbox = _mailbox(cursor)
    cursor.space()
    flags: tuple[str, ...] = ()
    if cursor.peek() == b"(":
        flags = cursor.flag_list()
        cursor.space()
    internal_ms = None
    if cursor.peek() == b'"':
        internal_ms = cursor.date_time()
        cursor.space()
    return Append(mailbox, _settable(flags), internal_ms, cursor.literal())


def _settable(flags: tuple[str, ...]) -> frozenset[str]:
    r"""\Recent is ours alone to set (RFC 3501 §2.3.2); a client that hands on what it fetched means no harm."""
    return frozenset(flags) - {"\\Recent"}


def _uid_expunge(cursor: Cursor) -> Command:
    cursor.space()
    return Expunge(cursor.sequence_set())


def _search(cursor: Cursor, by_uid: bool) -> Command:
    cursor.space()
    return Search(by_uid, parse_criteria(cursor))


def _store(cursor: Cursor, by_uid: bool) -> Command:
    cursor.space()
    messages = cursor.sequence_set()
    cursor.space()
    mode: FlagMode = "add" if cursor.accept(b"+") else "remove" if cursor.accept(b"-") else "replace"
    item = cursor.keyword()
    if item not in ("FLAGS", "FLAGS.SILENT"):
        raise Bad("expected FLAGS")
    cursor.space()
    if cursor.peek() == b"(":
        flags = cursor.flag_list()
    else:
        listed = [cursor.flag()]
        while cursor.accept(b" "):
            listed.append(cursor.flag())
        flags = tuple(listed)
    return Store(by_uid, messages, mode, item == "FLAGS.SILENT", _settable(flags))


def _transfer(cursor: Cursor, by_uid: bool, move: bool) -> Command:
    cursor.space()
    messages = cursor.sequence_set()
    return Transfer(by_uid, messages, _mailbox(cursor), move)


# --- FETCH items -----------------------------------------------------------------------------------------------------

_MACROS: dict[str, tuple[Item, ...]] = {
    "ALL": ("FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE"),
    "FAST": ("FLAGS", "INTERNALDATE", "RFC822.SIZE"),
    "FULL": ("FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODY"),
}
_ITEMS: dict[str, Item] = {
    "FLAGS": "FLAGS",
    "INTERNALDATE": "INTERNALDATE",
    "RFC822.SIZE": "RFC822.SIZE",
    "ENVELOPE": "ENVELOPE",
    "BODY": "BODY",
    "BODYSTRUCTURE": "BODYSTRUCTURE",
    "UID": "UID",
    "RFC822": Body(b"RFC822", Section((), ""), peek=False),
    "RFC822.HEADER": Body(b"RFC822.HEADER", Section((), "HEADER"), peek=True),
    "RFC822.TEXT": Body(b"RFC822.TEXT", Section((), "TEXT"), peek=False),
}
_PART = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6}){0,99})(?:\.|\Z)")
MAX_ITEMS = 200
MAX_FIELDS = 500


def _fetch(cursor: Cursor, by_uid: bool) -> Command:
    cursor.space()
    messages = cursor.sequence_set()
    cursor.space()
    items: dict[Item, None] = {"UID": None} if by_uid else {}
    if cursor.accept(b"("):
        items[_item(cursor)] = None
        while cursor.accept(b" "):
            items[_item(cursor)] = None
            if len(items) > MAX_ITEMS:
                raise Bad("too many items")
        cursor.expect(b")")
    else:
        for item in _macro_or_item(cursor):
            items[item] = None
    return Fetch(by_uid, messages, tuple(items))


def _macro_or_item(cursor: Cursor) -> tuple[Item, ...]:
    name = cursor.fetch_name()
    return _MACROS[name] if name in _MACROS else (_named(cursor, name),)


def _item(cursor: Cursor) -> Item:
    return _named(cursor, cursor.fetch_name())


def _named(cursor: Cursor, name: str) -> Item:
    if name in ("BODY", "BODY.PEEK") and cursor.accept(b"["):
        return _body(cursor, name == "BODY.PEEK")
    if name not in _ITEMS:
        raise Bad("unknown fetch item")
    return _ITEMS[name]


def _body(cursor: Cursor, peek: bool) -> Body:
    text = cursor.section_text()
    found = _PART.match(text)
    part = tuple(int(number) for number in found[1].split(".")) if found else ()
    what = text[found.end() :] if found else text
    if 0 in part or (found is not None and text.endswith(".")):
        raise Bad("bad part number")
    fields: tuple[bytes, ...] = ()
    match what:
        case "" | "HEADER" | "TEXT":
            section = Section(part, what)
        case "MIME" if part:
            section = Section(part, "MIME")
        case "HEADER.FIELDS" | "HEADER.FIELDS.NOT":
            fields = _fields(cursor)
            section = Section(part, what, fields)
        case _:
            raise Bad("bad section")
    cursor.expect(b"]")
    label = f"BODY[{text}".encode("ascii")
    if fields:
        label += b" (" + b" ".join(_field_label(field) for field in fields) + b")"
    return Body(label + b"]", section, peek, _partial(cursor))


def _fields(cursor: Cursor) -> tuple[bytes, ...]:
    cursor.expect(b" (")
    fields = [cursor.astring()]
    while cursor.accept(b" "):
        fields.append(cursor.astring())
        if len(fields) > MAX_FIELDS:
            raise Bad("too many fields")
    cursor.expect(b")")
    # A field name is printable US-ASCII without the colon (RFC 5322 §2.2).
    if any(not field or len(field) > 998 or any(not 33 <= c <= 126 or c == 58 for c in field) for field in fields):
        raise Bad("bad field name")
    return tuple(fields)


def _field_label(field: bytes) -> bytes:
    """As the client wrote it, quoted where an atom cannot hold it."""
    if re.fullmatch(rb"[^\x00-\x20\x7f-\xff(){%*\"\\\]]+", field):
        return field
    return b'"' + field.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _partial(cursor: Cursor) -> tuple[int, int] | None:
    if not cursor.accept(b"<"):
        return None
    start = cursor.number()
    cursor.expect(b".")
    count = cursor.number()
    if count == 0:
        raise Bad("a partial fetch is of at least one octet")
    cursor.expect(b">")
    return start, count


def _simple(name: str) -> Callable[[Cursor], Command]:
    command = Simple(name)  # type: ignore[arg-type]
    return lambda cursor: command


_PARSERS: dict[str, Callable[[Cursor], Command]] = {
    **{
        name: _simple(name)
        for name in ("CAPABILITY", "NOOP", "LOGOUT", "STARTTLS", "NAMESPACE", "CHECK", "CLOSE", "UNSELECT", "IDLE")
    },
    "ID": _id,
    "AUTHENTICATE": _authenticate,
    "LOGIN": _login,
    "ENABLE": _enable,
    "SELECT": lambda cursor: _select(cursor, examine=False),
    "EXAMINE": lambda cursor: _select(cursor, examine=True),
    "CREATE": _create,
    "DELETE": lambda cursor: Delete(_mailbox(cursor)),
    "RENAME": _rename,
    "SUBSCRIBE": lambda cursor: Subscribe(_mailbox(cursor), on=True),
    "UNSUBSCRIBE": lambda cursor: Subscribe(_mailbox(cursor), on=False),
    "LIST": lambda cursor: _list(cursor, subscribed=False),
    "LSUB": lambda cursor: _list(cursor, subscribed=True),
    "STATUS": _status,
    "APPEND": _append,
    "EXPUNGE": lambda cursor: Expunge(None),
    "UID EXPUNGE": _uid_expunge,
    "SEARCH": lambda cursor: _search(cursor, by_uid=False),
    "UID SEARCH": lambda cursor: _search(cursor, by_uid=True),
    "FETCH": lambda cursor: _fetch(cursor, by_uid=False),
    "UID FETCH": lambda cursor: _fetch(cursor, by_uid=True),
    "STORE": lambda cursor: _store(cursor, by_uid=False),
    "UID STORE": lambda cursor: _store(cursor, by_uid=True),
    "COPY": lambda cursor: _transfer(cursor, by_uid=False, move=False),
    "UID COPY": lambda cursor: _transfer(cursor, by_uid=True, move=False),
    "MOVE": lambda cursor: _transfer(cursor, by_uid=False, move=True),
    "UID MOVE": lambda cursor: _transfer(cursor, by_uid=True, move=True),
}
"""Every command there is, under its name on the wire."""
