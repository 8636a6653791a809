"""Load that remembers what it was promised: clients that go on through crashes, and the account at the end.

Every message has a key of its own in `X-Torture`. A client writes a key into its book when it hears the 250, with the
id in it. A key whose answer was lost with the connection may be in the mailbox or not, but never twice. Messages with
an Idempotency-Key are repeated until they are answered, so of those none may be missing.
"""

import imaplib
import os
import random
import re
import smtplib
import socket
import ssl
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from tests.node_process import Account, NodeProcess, receipt_id

TROUBLE = (OSError, smtplib.SMTPException, imaplib.IMAP4.abort, ssl.SSLError, EOFError)
"""What a client sees of a server that dies."""
LINE = "x" * 70 + "\r\n"


class Unavailable(OSError):
    """The server said that it cannot do it now."""


@dataclass
class Book:
    """What the clients know. Thread-safe by its lock."""

    answered: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Key → (id in the 250, recipients)."""
    unanswered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys whose final dot was sent and whose answer never came, or was 4xx."""
    refused: Counter[int] = field(default_factory=Counter)
    hung_up: int = 0
    """How often a client went away after the final dot, without waiting for the answer."""
    repeated: int = 0
    """Messages that were sent again under their Idempotency-Key."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Door:
    """Where clients find a node, and whether any is up. They wait here while none is."""

    def __init__(self, *nodes: NodeProcess) -> None:
        self.nodes = nodes
        self.up = threading.Event()
        self.finished = threading.Event()

    def open(self) -> None:
        self.up.set()

    def shut(self) -> None:
        self.up.clear()

    def end(self) -> None:
        self.finished.set()
        self.up.set()


def seeded() -> random.Random:
    """The run's dice. Their seed is printed: with SEED the same can be thrown again."""
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"seed {seed} (SEED={seed} throws the same again)")
    return random.Random(seed)


class Client(threading.Thread):
    """Works in sessions, one after the other, at any of the nodes, until it is to end."""

    LAST_WORDS = 60
    """Sessions begun after the end, at the most, to finish what is in hand."""

    def __init__(self, name: str, door: Door, who: Account, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self._door, self._who = door, who
        self._random = random.Random(seed)
        self.failure: BaseException | None = None

    def run(self) -> None:
        pause, left = threading.Event(), self.LAST_WORDS
        try:
            while self.owes() and left if self._door.finished.is_set() else True:
                self._door.up.wait()
                left -= self._door.finished.is_set()
                try:
                    self._session(self._random.choice(self._door.nodes))
                except imaplib.IMAP4.error as error:
                    if not isinstance(error, imaplib.IMAP4.abort) and "[UNAVAILABLE]" not in str(error):
                        raise
                    pause.wait(0.05)
                except TROUBLE as error:
                    if isinstance(error, smtplib.SMTPResponseException) and error.smtp_code >= 500:
                        raise
                    pause.wait(0.05)
        except BaseException as error:
            self.failure = error

    def owes(self) -> bool:
        """Whether something begun has to be finished even after the end."""
        return False

    def _session(self, node: NodeProcess) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Letter:
    key: str
    to: tuple[str, ...]
    text: bytes
    once: bool
    """It bears an Idempotency-Key."""


class Submitter(Client):
    """One connection after the other, each used for as many messages as it lives.

    `once`: the share of messages with an Idempotency-Key; `hang_up`: of those, how many are left without hearing the
    answer, and repeated.
    """

    def __init__(
        self,
        name: str,
        door: Door,
        who: Account,
        to: list[Account],
        book: Book,
        seed: int,
        once: float = 0.5,
        hang_up: float = 0.0,
        pace_s: float = 0.0,
    ) -> None:
        super().__init__(name, door, who, seed)
        self._to, self._book = to, book
        self._once, self._hang_up, self._pace_s = once, hang_up, pace_s
        self._keys = (f"{name}-{n}" for n in count())
        self._in_hand: Letter | None = None

    def owes(self) -> bool:
        return self._in_hand is not None

    def _session(self, node: NodeProcess) -> None:
        with node.smtp(self._who) as client:
            while self.owes() or not self._door.finished.is_set():
                self._submit(client)
                if self._pace_s:
                    self._door.finished.wait(self._random.expovariate(1 / self._pace_s))

    def _letter(self) -> Letter:
        key = next(self._keys)
        to = tuple(account.address for account in self._random.sample(self._to, self._random.choice((1, 1, 1, 2))))
        once = self._random.random() < self._once
        text = (
            f"From: {self._who.address}\r\nTo: {', '.join(to)}\r\nSubject: {key}\r\nX-Torture: {key}\r\n"
            + (f"Idempotency-Key: {key}\r\n" if once else "")
            + f"Message-ID: <{key}@torture.test>\r\nX-Workflow-ID: wf-{key}\r\n\r\n"
            + LINE * self._random.choice((1, 10, 30, 300))
        )
        return Letter(key, to, text.encode(), once)

    def _submit(self, client: smtplib.SMTP) -> None:
        if self._in_hand is not None:
            letter = self._in_hand
            self._book.repeated += 1
        else:
            letter = self._letter()
        for command in (f"MAIL FROM:<{self._who.address}>", *(f"RCPT TO:<{one}>" for one in letter.to), "DATA"):
            code, answer = client.docmd(command)
            if code in (-1, 421):
                raise smtplib.SMTPServerDisconnected
            if 400 <= code < 500:
                self._refused(code)
            assert code == (354 if command == "DATA" else 250), (code, answer)
        if letter.once:
            self._in_hand = letter
        try:
            client.send(letter.text + b".\r\n")
            if letter.once and self._random.random() < self._hang_up:
                self._hang_up_on(client)
            code, answer = client.getreply()
        except TROUBLE:
            self._unanswered(letter)
            raise
        if code == -1 or code == 421:  # it goes down and says so; nothing was taken
            raise smtplib.SMTPServerDisconnected
        if code == 250:
            with self._book.lock:
                self._book.answered[letter.key] = (receipt_id(answer), letter.to)
            self._in_hand = None
            return
        self._unanswered(letter)
        self._refused(code)

    def _hang_up_on(self, client: smtplib.SMTP) -> None:
        """Go away at once, without TLS's farewell; half the time without TCP's."""
        assert client.sock is not None
        if self._random.random() < 0.5:  # the node may be at any step by then
            self._door.finished.wait(self._random.uniform(0, 0.005))
        if self._random.random() < 0.5:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with self._book.lock:
            self._book.hung_up += 1
        raise smtplib.SMTPServerDisconnected

    def _unanswered(self, letter: Letter) -> None:
        if not letter.once:
            with self._book.lock:
                self._book.unanswered[letter.key] = letter.to

    def _refused(self, code: int) -> None:
        with self._book.lock:
            self._book.refused[code] += 1
        assert code < 500, code
        raise Unavailable(code)


class Mover(Client):
    """A reader that acknowledges what it finds and moves it to Done, through all crashes."""

    def __init__(self, door: Door, who: Account, seed: int = 0) -> None:
        super().__init__("mover", door, who, seed)

    def _session(self, node: NodeProcess) -> None:
        with node.imap(self._who, None) as client:
            open_folder(client)
            with suppress(imaplib.IMAP4.error):
                client.create("Done")
            while not self._door.finished.is_set():
                settle(client)
                client.noop()
                self._door.finished.wait(0.05)


class Watcher(Client):
    """A reader that only looks, now at this node and now at that, and never forgets what it saw."""

    def __init__(self, door: Door, who: Account, seed: int = 0) -> None:
        super().__init__("watcher", door, who, seed)
        self.seen: dict[int, str] = {}
        """UID → id of the message."""
        self._last = 0
        self._validity = b""

    def _session(self, node: NodeProcess) -> None:
        with node.imap(self._who, None) as client:
            open_folder(client, readonly=True)
            (validity,) = client.response("UIDVALIDITY")[1]
            assert validity == (self._validity or validity), "the mailbox is not the one it was"
            self._validity = validity
            for _ in range(self._random.randrange(1, 40)):
                if self._door.finished.wait(0.05):
                    return
                client.noop()
                self._look(client)

    def _look(self, client: imaplib.IMAP4) -> None:
        last = self._last
        _, parts = client.uid("FETCH", f"{last + 1}:*", "(UID BODY.PEEK[HEADER.FIELDS (AIMX-ID)])")
        for part in parts:
            if isinstance(part, tuple):
                uid, eid = int(re.search(rb"UID (\d+)", part[0])[1]), part[1].decode().split()[1]  # type: ignore[index]
                if uid <= last:  # `*` is the last one, however low
                    assert self.seen[uid] == eid, "a UID belongs to one message for ever"
                    continue
                assert uid > self._last, "UIDs rise"
                self.seen[uid], self._last = eid, uid

    def accuse(self, found: "Found") -> list[str]:
        """What is wrong between what was seen on the way and what is there at the end."""
        there = {uid: eid for copies in found.by_key.values() for uid, eid in copies}
        until_now = {uid: eid for uid, eid in there.items() if uid <= self._last}
        late = {uid for uid in until_now if uid not in self.seen}
        wrong = [f"UID {uid} became visible after UID {self._last}" for uid in sorted(late)]
        return wrong + [f"UID {uid} was {eid}" for uid, eid in self.seen.items() if there.get(uid) != eid]


def open_folder(client: imaplib.IMAP4, name: str = "INBOX", *, readonly: bool = False) -> None:
    answer, said = client.select(name, readonly)
    if answer != "OK":
        raise Unavailable(said)


def settle(client: imaplib.IMAP4) -> int:
    """Acknowledge and move away everything in the open mailbox."""
    answer, (found,) = client.uid("SEARCH", "ALL")
    if answer != "OK":
        raise Unavailable(found)
    uids = found.decode().split()
    for begin in range(0, len(uids), 100):
        some = ",".join(uids[begin : begin + 100])
        client.uid("STORE", some, "+FLAGS.SILENT", "($AimxDone)")
        client.uid("MOVE", some, "Done")
    return len(uids)


@dataclass
class Found:
    """One folder as IMAP shows it."""

    uids: list[int]
    by_key: dict[str, list[tuple[int, str]]]
    """Key → (UID, the message's id) of every copy."""


def look(node: NodeProcess, who: Account, folder: str = "INBOX") -> Found:
    with node.imap(who, None) as client:
        if client.select(folder, readonly=True)[0] != "OK":
            return Found([], {})
        _, parts = client.uid("FETCH", "1:*", "(UID BODY.PEEK[HEADER.FIELDS (X-Torture AIMX-ID)])")
    uids: list[int] = []
    by_key: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for part in parts:
        if not isinstance(part, tuple):
            continue
        uid = int(re.search(rb"UID (\d+)", part[0])[1])  # type: ignore[index]
        uids.append(uid)
        fields = dict(line.split(": ", 1) for line in part[1].decode().splitlines() if line)
        by_key[fields["X-Torture"]].append((uid, fields["AIMX-ID"]))
    return Found(uids, by_key)


def notices(node: NodeProcess, senders: Sequence[Account]) -> Counter[tuple[str, str]]:
    """(key, recipient) of every failure that was reported to a sender."""
    told: Counter[tuple[str, str]] = Counter()
    for sender in senders:
        for body in node.bodies(sender):
            if b"\r\nAIMX-Action: failed\r\n" in body or body.startswith(b"AIMX-Action: failed\r\n"):
                (key,) = re.findall(rb"^X-Torture: (\S+)", body, re.MULTILINE)
                for address in re.findall(rb"^Final-Recipient: rfc822; *(\S+)", body, re.MULTILINE):
                    told[key.decode(), address.decode()] += 1
    return told


def account_for(book: Book, boxes: dict[str, list[Found]], told: Counter[tuple[str, str]] | None = None) -> list[str]:
    """What is wrong between the book and the mailboxes: nothing, if the node kept its word.

    `told`: what was returned to its sender; that must not be in a mailbox too.
    """
    wrong = []
    told = told or Counter()
    copies: dict[str, dict[str, list[str]]] = {}
    for address, folders in boxes.items():
        held = copies.setdefault(address, defaultdict(list))
        for folder in folders:
            if folder.uids != sorted(set(folder.uids)):
                wrong.append(f"{address}: UIDs are not unique and rising")
            for key, found in folder.by_key.items():
                held[key] += [eid for _, eid in found]
    for key, (eid, to) in book.answered.items():
        for address in to:
            held, returned = copies[address].get(key, []), told[key, address]
            if (held, returned) not in (([eid], 0), ([], 1)):
                wrong.append(f"{key} answered 250 as {eid}: {address} has {held}, its sender {returned} notices")
    for key, to in book.unanswered.items():
        # All its recipients or none: it was one transaction.
        held_by = [len(copies[address].get(key, [])) + told[key, address] for address in to]
        if any(held > 1 for held in held_by) or len(set(held_by)) > 1:
            wrong.append(f"{key} never answered: {dict(zip(to, held_by, strict=True))}")
    known = {key: to for key, (_, to) in book.answered.items()} | book.unanswered
    for address, held in copies.items():
        wrong += [f"{address} has {key}, not sent to it" for key in held if address not in known.get(key, ())]
    return wrong
