"""Commands on mailboxes as such: LIST, LSUB, STATUS, CREATE, DELETE, RENAME, SUBSCRIBE (RFC 3501 §6.3).

Each takes the store and the owner and gives the untagged responses to send; errors are raised.
"""

from collections.abc import Iterable

from aimx.imap import response
from aimx.imap.command import Create, List, Rename, Status, Subscribe
from aimx.imap.errors import No
from aimx.imap.listing import DELIMITER, MAX_PATTERN, Pattern, superiors
from aimx.store.contract import INBOX, Mailbox, Store

MAX_NAME = 255
"""Octets of a mailbox name in UTF-8."""
MAX_LEVELS = 20


async def list_mailboxes(store: Store, owner: str, command: List) -> bytes:
    """LIST (RFC 3501 §6.3.8, with CHILDREN and SPECIAL-USE attributes)."""
    if not command.pattern:
        # An empty pattern asks for the delimiter and the root of the reference.
        return b'* LIST (\\Noselect) "/" ""\r\n'
    boxes = {box.name: box for box in await store.mailboxes(owner)}
    above = superiors(boxes)
    names = boxes if command.special_use else boxes.keys() | above
    out: list[bytes] = []
    for name in _matching(names, command):
        box = boxes.get(name)
        if command.special_use and (box is None or box.special_use is None):
            continue
        out.append(_line(b"LIST", _attributes(box, name in above), name))
    return b"".join(out)


async def list_subscribed(store: Store, owner: str, command: List) -> bytes:
    r"""LSUB (RFC 3501 §6.3.9): `%` also names levels above subscribed ones, as \Noselect."""
    subscribed = set(await store.subscriptions(owner))
    names = subscribed | superiors(subscribed) if command.pattern.endswith("%") else subscribed
    return b"".join(
        _line(b"LSUB", [] if name in subscribed else ["\\Noselect"], name) for name in _matching(names, command)
    )


def _matching(names: Iterable[str], command: List) -> list[str]:
    wanted = command.reference + command.pattern
    if len(wanted) > MAX_PATTERN:
        return []
    pattern = Pattern(_canonical_pattern(wanted))
    return sorted((name for name in names if pattern.matches(name)), key=lambda name: (name != INBOX, name))


def _canonical_pattern(pattern: str) -> str:
    """INBOX is matched in any case (RFC 3501 §5.1), alone or above other levels."""
    first, delimiter, rest = pattern.partition(DELIMITER)
    return INBOX + delimiter + rest if first.upper() == INBOX else pattern


def _attributes(box: Mailbox | None, has_children: bool) -> list[str]:
    attributes = ["\\HasChildren" if has_children else "\\HasNoChildren"]
    if box is None:
        attributes.insert(0, "\\Noselect")
    elif box.special_use is not None:
        attributes.append(box.special_use)
    return attributes


def _line(kind: bytes, attributes: Iterable[str], name: str) -> bytes:
    return b'* %b (%b) "/" %b\r\n' % (kind, " ".join(attributes).encode("ascii"), response.mailbox(name))


async def find(store: Store, owner: str, name: str, code: str = "NONEXISTENT") -> Mailbox:
    """Raises No; `code` is TRYCREATE where a message was to be put into the mailbox."""
    box = await store.mailbox(owner, name)
    if box is None:
        raise No("there is no such mailbox", code)
    return box


async def status(store: Store, owner: str, command: Status, append_limit: int) -> bytes:
    """STATUS (RFC 3501 §6.3.10, SIZE: RFC 8438, APPENDLIMIT: RFC 7889 §3.1)."""
    box = await find(store, owner, command.mailbox)
    found = (await store.status([box.key]))[box.key]
    values = {
        "MESSAGES": found.messages,
        "RECENT": found.recent,
        "UIDNEXT": found.uidnext,
        "UIDVALIDITY": found.uidvalidity,
        "UNSEEN": found.unseen,
        "SIZE": found.size,
        "APPENDLIMIT": append_limit,
    }
    listed = " ".join(f"{item} {values[item]}" for item in command.items)
    return b"* STATUS %b (%b)\r\n" % (response.mailbox(box.name), listed.encode("ascii"))


async def create(store: Store, owner: str, command: Create) -> None:
    _check_name(command.mailbox)
    await store.create_mailbox(owner, command.mailbox)


async def rename(store: Store, owner: str, command: Rename) -> None:
    _check_name(command.new)
    if command.old != INBOX:
        # The levels below move along: theirs must be names that CREATE would take.
        for box in await store.mailboxes(owner):
            if box.name.startswith(command.old + DELIMITER):
                _check_name(command.new + box.name.removeprefix(command.old))
    if command.new.startswith(command.old + DELIMITER) and command.old != INBOX:
        raise No("a mailbox cannot be moved into itself", "CANNOT")
    await store.rename_mailbox(owner, command.old, command.new)


async def subscribe(store: Store, owner: str, command: Subscribe) -> None:
    if command.on:
        await find(store, owner, command.mailbox)
    await store.subscribe_mailbox(owner, command.mailbox, command.on)


def _check_name(name: str) -> None:
    """What a new mailbox may be called."""
    levels = name.split(DELIMITER)
    if not all(levels) or len(levels) > MAX_LEVELS or len(name.encode()) > MAX_NAME:
        raise No("a mailbox name has 1 to 255 octets and no empty levels", "CANNOT")
    # Control characters, wildcards and the namespace mark would make names that no client can address.
    if name.startswith("#") or any(char in "*%" or not char.isprintable() for char in name):
        raise No("that mailbox name cannot be used", "CANNOT")
