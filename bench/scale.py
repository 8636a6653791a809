"""`python -m bench.scale`: many agents that wait, one large mailbox, eight large messages. A Markdown table.

AIMX on SQLite, one process, traced and audited, over TLS; beside it Dovecot from Debian, in the clear.

idle     memory of N agents in IMAP IDLE (Pss of all processes, over what there was before them)
mailbox  SELECT and FETCH 1:* (UID FLAGS) of a mailbox that was filled by COPY; alternating rounds, the median counts
large    eight messages of 50 MB at once: the node's memory, and how long mail to waiting agents takes meanwhile
"""

import argparse
import imaplib
import json
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from bench.dovecot import Dovecot
from bench.generator import Generator, Result, Unavailable
from bench.load import MAILBOXES, SIZE, machine
from bench.node import AimxNode
from tests.node_process import Account

DOVECOT_IDLE = 200
"""It has a process for each session: what one takes does not depend on how many there are."""
LARGE, LARGE_SIZE = 8, 50_000_000
READERS, RATE = 10, 50
ROUNDS = 5


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=list(ROWS), help=f"{' | '.join(ROWS)} [all]")
    parser.add_argument(
        "--quick", action="store_true", help="1,000 agents instead of 10,000, 16,000 messages of 128,000"
    )
    parser.add_argument("--json", type=Path, help="also write all figures there")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(mkdtemp(prefix="aimx-bench-"))
    folder.chmod(0o711)
    figures: dict[str, Any] = {"machine": machine()}
    print(f"\n{machine()}\n\n| what | AIMX | compared with | ratio |\n| --- | --: | --: | --: |")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["rm", "-rf", str(folder)], check=False)
        try:
            generator = Generator(folder)
            sink = stack.enter_context(generator.sink())
        except Unavailable as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        for what in options.what:
            place = folder / what
            place.mkdir(mode=0o711)
            names = [f"box{n:03d}" for n in range(MAILBOXES)]
            node = AimxNode(place / "aimx", names, traced)
            try:
                dovecot = Dovecot(place / "dovecot", [Account(f"{name}@fabric.local", "x") for name in names])
            except Unavailable as error:
                print(f"bench: {error}", file=sys.stderr)
                return 2
            with node.running(), dovecot.running():
                figures[what] = ROWS[what](node, dovecot, generator, options.quick)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


# ── agents that wait ─────────────────────────────────────────────────────────────────────────────────────────────────


def idle(node: AimxNode, dovecot: Dovecot, generator: Generator, quick: bool) -> dict[str, Any]:
    agents = 1_000 if quick else 10_000
    before, began = node.memory_kib(), time.monotonic()
    with generator.held(node.imap, node.accounts, connections=agents, ca=node.ca):
        took, after = time.monotonic() - began, node.memory_kib()
        waits = paced(node, generator, 5)
    empty = dovecot.memory_kib()
    with generator.held(dovecot.imap, dovecot.accounts, connections=DOVECOT_IDLE):
        other = (dovecot.memory_kib() - empty) / DOVECOT_IDLE
    each = (after - before) / agents
    row(
        f"{agents:,} agents in IDLE: KiB each (node in all, MB)",
        f"{each:.0f} ({after / 1024:.0f})",
        f"Dovecot, {DOVECOT_IDLE} agents, no TLS: {other:.0f}",
        f"{each / other:.2f}",
    )
    row(f"mail to ten of them at {RATE}/s meanwhile: body p50 / p99, ms", shown(waits), "", "")
    return {"before_kib": before, "after_kib": after, "seconds": took, "dovecot_each_kib": other, "body": waits.body_ms}


def paced(node: AimxNode, generator: Generator, seconds: int) -> Result:
    readers = node.accounts[-READERS:]
    return generator.run(
        node.smtp, readers, readers, count=RATE * seconds, connections=READERS, size=SIZE,
        ca=node.ca, imap=node.imap, mode="idle", rate=RATE, traceparent=True,
    )  # fmt: skip


def shown(result: Result) -> str:
    return f"{result.body_ms['p50']:.1f} / {result.body_ms['p99']:.1f}"


# ── a large mailbox ──────────────────────────────────────────────────────────────────────────────────────────────────


def mailbox(node: AimxNode, dovecot: Dovecot, _generator: Generator, quick: bool) -> dict[str, Any]:
    doublings = 4 if quick else 7
    logins: dict[str, Callable[[], imaplib.IMAP4]] = {
        "AIMX": lambda: signed_in(node.imap, node.accounts[0], node.process.tls()),
        "Dovecot": lambda: signed_in(dovecot.imap, dovecot.accounts[0], None),
    }
    for login in logins.values():
        fill(login(), doublings)
    for login in logins.values():
        look(login())  # Dovecot makes its index
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in logins}
    for number in range(ROUNDS):
        for name in list(logins) if number % 2 == 0 else list(reversed(logins)):
            taken[name].append(look(logins[name]()))
    count = f"{1000 * 2**doublings:,}"
    for at, what in enumerate((f"SELECT of {count} messages, ms", f"FETCH 1:* (UID FLAGS) of {count}, ms")):
        mine, other = (statistics.median(each[at] for each in taken[name]) for name in logins)
        row(what, f"{mine:.0f}", f"Dovecot: {other:.0f}", f"{mine / other:.2f}")
    return taken


def signed_in(imap: str, account: Account, tls: ssl.SSLContext | None) -> imaplib.IMAP4:
    host, _, port = imap.rpartition(":")
    client = imaplib.IMAP4_SSL(host, int(port), ssl_context=tls) if tls else imaplib.IMAP4(host, int(port))
    client.login(account.address, account.password)
    return client


def fill(client: imaplib.IMAP4, doublings: int) -> None:
    text = b"Subject: one of many\r\nContent-Type: application/json\r\n\r\n{}\r\n" + b" " * SIZE
    for _ in range(1000):
        client.append("INBOX", "", "", text)
    client.select("INBOX")
    for _ in range(doublings):
        answer, said = client.copy("1:*", "INBOX")
        assert answer == "OK", said
        client.noop()
    client.logout()


def look(client: imaplib.IMAP4) -> tuple[float, float]:
    """Milliseconds of SELECT and of FETCH; the answers are read, not parsed."""
    raw: socket.socket = client.socket()
    spent = []
    for tag, command in ((b"s", b"SELECT INBOX"), (b"f", b"FETCH 1:* (UID FLAGS)")):
        began = time.perf_counter()
        raw.sendall(tag + b" " + command + b"\r\n")
        tail = b""
        while b"\r\n" + tag + b" OK" not in tail:
            got = raw.recv(1 << 20)
            assert got, "the server hung up"
            tail = tail[-400:] + got
        spent.append((time.perf_counter() - began) * 1000)
    client.logout()
    return spent[0], spent[1]


# ── large messages ───────────────────────────────────────────────────────────────────────────────────────────────────


def large(node: AimxNode, _dovecot: Dovecot, generator: Generator, _quick: bool) -> dict[str, Any]:
    paced(node, generator, 1)
    alone, before = paced(node, generator, 6), node.memory_kib()
    found: list[Result] = []
    with highest(node) as peak, ExitStack() as stack:
        senders = node.accounts[:LARGE]

        def send() -> None:
            options = {"connections": LARGE, "size": LARGE_SIZE, "ca": node.ca}
            found.append(generator.run(node.smtp, senders, senders, count=LARGE, **options))

        sending = threading.Thread(target=send)
        sending.start()
        stack.callback(sending.join)
        meanwhile = paced(node, generator, 6)
    (sent,) = found
    if sent.accepted != LARGE:
        raise RuntimeError(f"{sent.refused} large messages were refused")
    row(
        f"{LARGE} messages of {LARGE_SIZE // 1_000_000} MB at once: memory at most (before), MB",
        f"{peak[0] / 1024:.0f} ({before / 1024:.0f})",
        f"octets under way: {LARGE * LARGE_SIZE / 2**20:.0f}",
        f"{(peak[0] - before) * 1024 / (LARGE * LARGE_SIZE):.2f}",
    )
    p99 = meanwhile.body_ms["p99"] / alone.body_ms["p99"]
    row(f"others' mail at {RATE}/s meanwhile: p50 / p99, ms", shown(meanwhile), f"alone: {shown(alone)}", f"{p99:.2f}")
    return {"before_kib": before, "peak_kib": peak[0], "alone": alone.body_ms, "meanwhile": meanwhile.body_ms,
            "seconds": sent.last_at - sent.first_at}  # fmt: skip


@contextmanager
def highest(node: AimxNode) -> Iterator[list[int]]:
    """The most memory that was seen, by looking twenty times a second."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], node.memory_kib())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        done.set()
        watching.join()


ROWS = {"idle": idle, "mailbox": mailbox, "large": large}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
