"""Load that remembers what it was promised: clients that go on through crashes, and the account at the end.

Every message has a key of its own in `X-Torture`. A client writes a key into its book when it hears the 250, with the
id in it. A key whose answer was lost with the connection may be in the mailbox or not, but never twice.
"""

import imaplib
import os
import random
import re
import smtplib
import ssl
import threading
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from tests.node_process import Account, NodeProcess, receipt_id

TROUBLE = (OSError, smtplib.SMTPException, imaplib.IMAP4.abort, ssl.SSLError, EOFError)
"""What a client sees of a server that dies."""


@dataclass
class Book:
    """What the clients know. Thread-safe by its lock."""

    answered: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Key → (id in the 250, recipients)."""
    unanswered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys whose final dot was sent and whose answer never came."""
    refused: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Door:
    """Whether the node is up, and where. Clients wait here while it is down."""

    def __init__(self, node: NodeProcess, *, patient: bool = False) -> None:
        """`patient`: its clients take a 4xx before the message for an answer, and go on with the next one."""
        self.node = node
        self.patient = patient
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
    """The run's dice. Their seed is printed: with TORTURE_SEED a run can be had again."""
    seed = int(os.environ.get("TORTURE_SEED") or random.randrange(1 << 32))
    print(f"seed {seed} (TORTURE_SEED={seed} runs the same again)")
    return random.Random(seed)


class Submitter(threading.Thread):
    """One connection after the other, each used for as many messages as it lives."""

    def __init__(self, name: str, door: Door, who: Account, to: list[Account], book: Book, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self._door, self._who, self._to, self._book = door, who, to, book
        self._random = random.Random(seed)
        self._keys = (f"{name}-{n}" for n in count())
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._door.finished.is_set():
                self._door.up.wait()
                with suppress(*TROUBLE):
                    self._session()
        except BaseException as error:
            self.failure = error

    def _session(self) -> None:
        with self._door.node.smtp(self._who) as client:
            while not self._door.finished.is_set():
                self._submit(client)

    def _submit(self, client: smtplib.SMTP) -> None:
        key = next(self._keys)
        to = tuple(account.address for account in self._random.sample(self._to, self._random.choice((1, 1, 1, 2))))
        filling = "x" * 70 + "\r\n"
        text = (
            f"From: {self._who.address}\r\nTo: {', '.join(to)}\r\nSubject: {key}\r\nX-Torture: {key}\r\n"
            f"Message-ID: <{key}@torture.test>\r\nX-Workflow-ID: wf-{key}\r\n\r\n"
            + filling
            * self._random.choice((1, 10, 30, 300))
        )
        for command in (f"MAIL FROM:<{self._who.address}>", *(f"RCPT TO:<{one}>" for one in to), "DATA"):
            code, answer = client.docmd(command)
            if code in (-1, 421):
                raise smtplib.SMTPServerDisconnected
            if code // 100 == 4 and self._door.patient:
                with self._book.lock:
                    self._book.refused[code] += 1
                client.rset()
                return
            assert code == (354 if command == "DATA" else 250), (code, answer)
        try:
            client.send(text.encode() + b".\r\n")
            code, answer = client.getreply()
        except TROUBLE:
            with self._book.lock:
                self._book.unanswered[key] = to
            raise
        if code == -1 or code == 421:  # it goes down and says so; nothing was taken
            raise smtplib.SMTPServerDisconnected
        with self._book.lock:
            if code == 250:
                self._book.answered[key] = (receipt_id(answer), to)
            else:
                self._book.refused[code] += 1


class Mover(threading.Thread):
    """A reader that acknowledges what it finds and moves it to Done, through all crashes."""

    def __init__(self, door: Door, who: Account) -> None:
        super().__init__(name="mover", daemon=True)
        self._door, self._who = door, who
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._door.finished.is_set():
                self._door.up.wait()
                with suppress(*TROUBLE):
                    self._session()
        except BaseException as error:
            self.failure = error

    def _session(self) -> None:
        with self._door.node.imap(self._who) as client:
            with suppress(imaplib.IMAP4.error):
                client.create("Done")
            while not self._door.finished.is_set():
                settle(client)
                client.noop()
                self._door.finished.wait(0.05)


def settle(client: imaplib.IMAP4) -> int:
    """Acknowledge and move away everything in the open mailbox."""
    _, (found,) = client.uid("SEARCH", "ALL")
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


def account_for(book: Book, boxes: dict[str, list[Found]]) -> list[str]:
    """What is wrong between the book and the mailboxes: nothing, if the node kept its word."""
    wrong = []
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
            if copies[address].get(key, []) != [eid]:
                wrong.append(f"{key} answered 250 as {eid}: {address} has {copies[address].get(key, [])}")
    for key, to in book.unanswered.items():
        # All its recipients or none: it was one transaction.
        held_by = [copies[address].get(key, []) for address in to]
        if any(len(held) > 1 for held in held_by) or len({len(held) for held in held_by}) > 1:
            wrong.append(f"{key} never answered: {dict(zip(to, held_by, strict=True))}")
    known = {key: to for key, (_, to) in book.answered.items()} | book.unanswered
    for address, held in copies.items():
        wrong += [f"{address} has {key}, not sent to it" for key in held if address not in known.get(key, ())]
    return wrong
