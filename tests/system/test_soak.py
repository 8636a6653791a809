"""Malformed input of every kind, on all doors at once: who behaves notices nothing, and memory stays where it was."""

import base64
import random
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.node_process import NodeProcess
from tests.protocol.test_imap_hostile import AGENTS as IMAP_AGENTS
from tests.protocol.test_imap_hostile import STRANGERS as IMAP_STRANGERS

MAIL = b"MAIL FROM:<@>\r\nRCPT TO:<!>\r\nDATA\r\n"
TEXT = b"From: @\r\nSubject: x\r\n\r\nhello"

ENDS = (
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\n.\r",
    b"\r.\n",
    b"\n\n.\r\n",
    b"\r\n\0.\r\n",
)

SMTP_STRANGERS = {
    "talk before the banner": b"EHLO x\r\nEHLO x\r\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS in TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "endless command": b"EHLO " + b"x" * 300_000,
    "endless command, ended": b"EHLO " + b"x" * 300_000 + b"\r\n",
    "NULs": b"\0" * 10_000 + b"\r\n",
    "8-bit": b"EHLO \xff\xfe\r\n",
    "bare LF": b"EHLO x\nNOOP\nQUIT\n",
    "bare CR": b"EHLO x\rNOOP\r\n",
    "no greeting": b"MAIL FROM:<a@b.c>\r\n",
    "two greetings": b"EHLO x\r\nEHLO y\r\n",
    "greeting without a name": b"EHLO\r\n",
    "many NOOPs": b"NOOP\r\n" * 5000,
    "many unknown commands": b"FROB\r\n" * 100,
    "many RSETs": b"EHLO x\r\n" + b"RSET\r\n" * 5000,
    "not signed in": b"EHLO x\r\n" + MAIL,
    "bad base64": b"EHLO x\r\nAUTH PLAIN !!!!\r\n",
    "endless base64": b"EHLO x\r\nAUTH PLAIN\r\n" + b"A" * 100_000 + b"\r\n",
    "bad SCRAM": b"EHLO x\r\nAUTH SCRAM-SHA-256 biwsbj0scj0=\r\n",
    "unknown mechanism": b"EHLO x\r\nAUTH X-" + b"Y" * 400 + b"\r\n",
    "AUTH given up": b"EHLO x\r\nAUTH LOGIN\r\n*\r\n",
    "STARTTLS again": b"EHLO x\r\nSTARTTLS\r\nEHLO y\r\n",
    "help and verify": b"EHLO x\r\nVRFY root\r\nEXPN all\r\nHELP " + b"x" * 400 + b"\r\n",
}

SMTP_AGENTS = {
    "sender is another": b"MAIL FROM:<root@fabric.local>\r\n",
    "sender is nobody": b"MAIL FROM:<>\r\n",
    "sender without domain": b"MAIL FROM:<root>\r\n",
    "path without end": b"MAIL FROM:<a@b\r\n",
    "source route": b"MAIL FROM:<@a,@b:c@d>\r\n",
    "quoted local part": b'MAIL FROM:<"a\\"b c"@d>\r\n',
    "local part of 300": b"MAIL FROM:<" + b"x" * 300 + b"@d>\r\n",
    "unknown parameter": b"MAIL FROM:<@> FROB=1\r\n",
    "size that is none": b"MAIL FROM:<@> SIZE=-1\r\n",
    "size too large": b"MAIL FROM:<@> SIZE=99999999999999\r\n",
    "recipient before sender": b"RCPT TO:<!>\r\n",
    "empty recipient": b"MAIL FROM:<@>\r\nRCPT TO:<>\r\n",
    "recipient elsewhere": b"MAIL FROM:<@>\r\nRCPT TO:<a@example.com>\r\n",
    "many unknown recipients": b"MAIL FROM:<@>\r\n" + b"".join(b"RCPT TO:<u%d@x.y>\r\n" % n for n in range(300)),
    "many recipients": b"MAIL FROM:<@>\r\n" + b"RCPT TO:<!>\r\n" * 3000,
    "DATA without recipient": b"MAIL FROM:<@>\r\nDATA\r\n",
    "DATA with argument": MAIL.replace(b"DATA", b"DATA x"),
    "BDAT": MAIL.replace(b"DATA", b"BDAT 5 LAST") + b"hello",
    "header without end": MAIL + b"X: " + b"y" * 400_000 + b"\r\n.\r\n",
    "header of many lines": MAIL + b"X: y\r\n" * 60_000 + b"\r\n.\r\n",
    "a line of a megabyte": MAIL + TEXT + b"x" * 1_000_000 + b"\r\n.\r\n",
    "no header": MAIL + b"\r\n.\r\n",
    "nothing": MAIL + b".\r\n",
    "NULs in the text": MAIL + TEXT + b"\0" * 1000 + b"\r\n.\r\n",
    "cut in the text": MAIL + TEXT * 1000,
    "cut before the dot": MAIL + TEXT + b"\r\n",
    "bare LF in the text": MAIL + TEXT + b"\nmore\r\n.\r\n",
    "bare CR in the text": MAIL + TEXT + b"\rmore\r\n.\r\n",
    "many parts": MAIL + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 30_000 + b"\r\n.\r\n",
    "deep parts": MAIL
    + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(2000))
    + b"\r\n.\r\n",
    "many traceparents": MAIL + b"traceparent: 00-%s-%s-01\r\n" % (b"1" * 32, b"2" * 16) * 3 + TEXT + b"\r\n.\r\n",
    "long baggage": MAIL + b"baggage: " + b"a=b," * 20_000 + b"\r\n" + TEXT + b"\r\n.\r\n",
    "forged headers": MAIL + b"AIMX-Trace: x\r\nX-Agent-ID: root\r\n" + TEXT + b"\r\n.\r\n",
    "many references": MAIL + b"References: " + b"<a@b> " * 20_000 + b"\r\n" + TEXT + b"\r\n.\r\n",
    "payload that is none": MAIL + b"Content-Type: application/json\r\nFrom: @\r\n\r\n" + b"[" * 50_000 + b"\r\n.\r\n",
    **{f"end {end!r}": MAIL + TEXT + end + b"MAIL FROM:<root@fabric.local>\r\n\r\n.\r\n" for end in ENDS},
}

SECONDS = 0.15
"""How long a hostile client waits for an answer before it goes away."""


# Failed sign-ins have tests of their own; here they must not slow the attack down.
CONFIG = "[sign_in]\nmax_failures = 100000\ndelay = '10ms'\n"


def test_malformed_input_harms_nobody_else_and_leaves_no_memory_behind(tmp_path):
    run_soak(tmp_path, rounds=3)


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_malformed_input_for_long(tmp_path):
    run_soak(tmp_path, rounds=25)


def run_soak(tmp_path, rounds):
    with NodeProcess(tmp_path, CONFIG) as node:
        hostile, planner, critic = node.add_agent("hostile"), node.add_agent("planner"), node.add_agent("critic")
        attacks = [("smtps", payload, None) for payload in SMTP_STRANGERS.values()]
        attacks += [("imaps", payload, None) for payload in IMAP_STRANGERS.values()]
        attacks += [("smtps", payload, hostile) for payload in SMTP_AGENTS.values()]
        attacks += [("imaps", payload, hostile) for payload in IMAP_AGENTS.values()]
        attacks += [(door, payload, "clear") for door in ("smtp", "imap") for payload in IMAP_STRANGERS.values()]
        bystander = Bystander(node, planner, critic)
        bystander.start()
        sizes = []
        dice = random.Random(1)
        with ThreadPoolExecutor(8) as pool:
            for _ in range(rounds):
                dice.shuffle(attacks)
                list(pool.map(lambda attack: strike(node, *attack), attacks))
                sizes.append(node.rss_kib())
        bystander.end.set()
        bystander.join(30)
        assert bystander.failure is None, bystander.failure
        assert bystander.turns > 10
        print(f"{rounds} × {len(attacks)} attacks, {bystander.turns} turns beside them, the slowest "
              f"{bystander.slowest:.2f} s; RSS after each round {sizes} KiB")  # fmt: skip
        assert bystander.slowest < 5
        # The first rounds fill SQLite's page caches (at most 32 MiB to write, 8 MiB a reader) and the allocator's
        # arenas; from then on nothing may pile up.
        assert sizes[-1] - sizes[len(sizes) // 2] < 32 * 1024, sizes
        assert sizes[-1] < 300 * 1024, sizes
        assert node.aimx("audit", "verify").returncode == 0
        with node.smtp(hostile) as client:
            assert client.noop()[0] == 250
    wrong = [line for line in node.lines() if line["level"] in ("error", "critical") or "exception" in line]
    assert not wrong, wrong[:3]


class Bystander(threading.Thread):
    """Sends a mail and reads it, over two long sessions, again and again."""

    def __init__(self, node, sender, reader):
        super().__init__(daemon=True)
        self._node, self._sender, self._reader = node, sender, reader
        self.end = threading.Event()
        self.failure = None
        self.turns = 0
        self.slowest = 0.0

    def run(self):
        try:
            with self._node.smtp(self._sender) as smtp, self._node.imap(self._reader) as imap:
                while not self.end.wait(0.05):
                    began = time.monotonic()
                    self.turns += 1
                    text = f"From: {self._sender.address}\r\nSubject: turn {self.turns}\r\n\r\nhello\r\n"
                    smtp.sendmail(self._sender.address, [self._reader.address], text)
                    imap.noop()
                    answer, parts = imap.fetch(str(self.turns), "(BODY.PEEK[])")
                    assert answer == "OK"
                    assert f"Subject: turn {self.turns}\r\n".encode() in parts[0][1]
                    self.slowest = max(self.slowest, time.monotonic() - began)
        except BaseException as error:
            self.failure = error


def strike(node, door, payload, who):
    """One hostile connection. What it is answered is the protocol tests' business."""
    with suppress(OSError, ssl.SSLError), socket.create_connection(node.endpoint(door), timeout=5) as plain:
        if who == "clear":
            converse(plain, payload)
            return
        with node.tls().wrap_socket(plain, server_hostname="localhost") as connection:
            if who is not None:
                sign_in(connection, door, who)
                payload = payload.replace(b"<@>", f"<{who.address}>".encode()).replace(
                    b"<!>", f"<{who.address}>".encode()
                )
                payload = payload.replace(b"From: @", f"From: {who.address}".encode())
            converse(connection, payload)


def sign_in(connection, door, who):
    connection.recv(4096)
    if door == "imaps":
        connection.sendall(f'z1 LOGIN "{who.address}" "{who.password}"\r\nz2 SELECT INBOX\r\n'.encode())
        heard = b""
        while b"\nz2 " not in heard:
            heard += connection.recv(65536)
    else:
        secret = base64.b64encode(f"\0{who.address}\0{who.password}".encode()).decode()
        connection.sendall(b"EHLO x\r\n")
        connection.recv(4096)
        connection.sendall(f"AUTH PLAIN {secret}\r\n".encode())
        assert connection.recv(4096).startswith(b"235")


def converse(connection, payload):
    connection.settimeout(3)
    connection.sendall(payload)
    connection.settimeout(SECONDS)
    for _ in range(50):
        if not connection.recv(65536):
            break
