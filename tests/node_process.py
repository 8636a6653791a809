"""A real node in a process of its own, for tests and benchmarks.

    with NodeProcess(folder) as node:
        planner = node.add_agent("planner")
        ... node.ready["smtps"], node.client(planner), node.tls()

Every port is a free one. Waiting is for events (a file that appears, a process that ends), never for time.
"""

import ctypes
import imaplib
import json
import os
import re
import select
import signal
import smtplib
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LISTENERS = ("smtp", "smtps", "imap", "imaps", "http")
LOOPBACK = "127.0.0.1"
MAIN = "import sys; from aimx.cli import main; sys.argv[0] = 'aimx'; main()"
AIMX = [sys.executable, "-c", MAIN]
"""The `aimx` command of the interpreter that runs the tests."""
ROOT = Path(__file__).parents[1]
START_S = 40.0
STOP_S = 10.0
"""What a node promises: SIGTERM finishes what it holds and leaves within ten seconds."""


@dataclass(frozen=True, slots=True)
class Account:
    """One agent. The password is a test's own, so it may show."""

    address: str
    password: str
    url: str = ""

    @property
    def name(self) -> str:
        return self.address.partition("@")[0]


@dataclass
class NodeProcess:
    """A data folder and the process that serves it. `start`, `stop` and `kill` may follow each other at will."""

    folder: Path
    config: str = ""
    """What stands in aimx.toml; rewrite it with `configure`."""
    environ: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()
    """A command to run the node under, such as a profiler or `nsenter`."""
    prelude: str = ""
    """A module to import before AIMX, such as `tests.shifted_clock`."""
    host: str = LOOPBACK
    """The address to listen at."""
    patience_s: float = START_S
    """How long it may take to start."""
    process: subprocess.Popen[bytes] | None = None
    ready: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        self.toml = self.folder / "aimx.toml"
        self.log = self.folder / "node.log"
        self.out = self.folder / "node.out"
        self.ready_file = self.folder / "ready.json"
        self.configure(self.config)

    # ── life ──

    def start(self, *, same_ports: bool = False) -> Self:
        """Returns once it answers. AssertionError with the end of its log when it does not.

        `same_ports`: listen where the last run did, for clients that come back by themselves.
        """
        self.ready_file.unlink(missing_ok=True)
        with Appearance(self.ready_file) as appearance:
            process = self._spawn({name: self.endpoint(name) for name in LISTENERS} if same_ports else {})
            if not appearance.wait(process.pid, self.patience_s):
                self.kill()
                raise AssertionError(f"the node did not start:\n{self.tail()}{self.out.read_text()[-1000:]}")
        self.ready = json.loads(self.ready_file.read_bytes())
        return self

    def start_and_kill(self, after_s: float) -> None:
        """Start it and kill it while it does so (or just after)."""
        self.ready_file.unlink(missing_ok=True)
        process = self._spawn({})
        with suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
        self.kill()

    def _spawn(self, doors: Mapping[str, tuple[str, int]]) -> subprocess.Popen[bytes]:
        assert self.process is None, "it runs already"
        program = [sys.executable, "-c", f"import {self.prelude}; {MAIN}"] if self.prelude else AIMX
        command = [*self.wrapper, *program, "serve", "--data", str(self.data), "--config", str(self.toml)]
        command += ["--ready-file", str(self.ready_file), *self.flags]
        for name in LISTENERS:
            host, port = doors.get(name, (self.host, 0))
            command += [f"--{name}", f"{host}:{port}"]
        with self.log.open("ab") as log, self.out.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=clean_environ({**({"PYTHONPATH": str(ROOT)} if self.prelude else {}), **self.environ}),
            )
        return self.process

    def stop(self) -> float:
        """SIGTERM; asserts that it leaves in time and with exit code 0. Returns the seconds it took."""
        began = time.monotonic()
        code = self._end(signal.SIGTERM, STOP_S)
        took = time.monotonic() - began
        assert code == 0, f"exit code {code} after {took:.1f} s:\n{self.tail()}"
        return took

    def kill(self) -> None:
        """SIGKILL to all its processes, as a crash of the machine does it."""
        assert self.process is not None, "it does not run"
        orphans = [os.pidfd_open(pid) for pid in self.workers()]
        self._end(signal.SIGKILL, 5)
        for orphan in orphans:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(orphan, signal.SIGKILL)
            assert select.select([orphan], [], [], 5)[0], "a killed worker is still there"
            os.close(orphan)

    def workers(self) -> list[int]:
        """Processes that the node's first one has made."""
        assert self.process is not None, "it does not run"
        return children(self.process.pid)

    def freeze(self) -> None:
        """SIGSTOP; from its return on, not one more instruction of the node is carried out. Only `kill` ends that."""
        assert self.process is not None, "it does not run"
        freeze(self.process.pid)

    def restart(self, *, same_ports: bool = False) -> Self:
        self.stop()
        return self.start(same_ports=same_ports)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process is None:
            return
        if kind is None:
            self.stop()
        else:
            self.kill()

    def _end(self, number: signal.Signals, patience_s: float) -> int:
        process, self.process = self.process, None
        assert process is not None, "it does not run"
        with suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
            raise AssertionError(f"still there {patience_s:.0f} s after {number.name}:\n{self.tail()}") from None

    # ── what a user does with it ──

    def aimx(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """`aimx …` on this folder."""
        environ = clean_environ({"AIMX_DATA": str(self.data), **options.pop("environ", {})})
        done = subprocess.run(
            [*AIMX, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False, **options
        )
        assert not check or done.returncode == 0, f"aimx {' '.join(arguments)}: {done.stdout}\n{done.stderr}"
        return done

    def add_agent(self, name: str, *options: str) -> Account:
        made = json.loads(self.aimx("agent", "add", name, "--json", *options).stdout)
        return Account(made["address"], made["password"], made.get("url", ""))

    def configure(self, text: str) -> None:
        """Replace aimx.toml in one step; a running node takes its rules within about a second."""
        self.config = text
        draft = self.toml.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self.toml)

    def endpoint(self, name: str) -> tuple[str, int]:
        host, _, port = self.ready[name].removeprefix("https://").rpartition(":")
        return host.strip("[]"), int(port)

    def tls(self) -> ssl.SSLContext:
        """What a careful client uses: the node's own CA and no other."""
        context = ssl.create_default_context(cafile=self.ready["ca"])
        context.check_hostname = self.host == LOOPBACK  # certificates name domains and loopback
        return context

    @contextmanager
    def smtp(self, account: Account | None = None) -> Iterator[smtplib.SMTP_SSL]:
        host, port = self.endpoint("smtps")
        with smtplib.SMTP_SSL(host, port, timeout=30, context=self.tls(), local_hostname="client.test") as client:
            if account is not None:
                client.login(account.address, account.password)
            yield client

    @contextmanager
    def imap(self, account: Account, folder: str | None = "INBOX") -> Iterator[imaplib.IMAP4_SSL]:
        host, port = self.endpoint("imaps")
        client = imaplib.IMAP4_SSL(host, port, ssl_context=self.tls(), timeout=30)
        try:
            client.login(account.address, account.password)
            if folder is not None:
                answer, _ = client.select(folder)
                assert answer == "OK"
            yield client
        finally:
            with suppress(OSError, imaplib.IMAP4.error):
                client.logout()

    def bodies(self, account: Account, folder: str = "INBOX") -> list[bytes]:
        """All messages of a folder as stored, in UID order."""
        with self.imap(account, folder) as client:
            _, parts = client.uid("FETCH", "1:*", "(UID BODY.PEEK[])")
        return [part[1] for part in parts if isinstance(part, tuple)]

    # ── what it says ──

    def lines(self) -> list[dict[str, Any]]:
        """Its log, as the JSON objects it must be."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def tail(self, octets: int = 6000) -> str:
        return self.log.read_bytes()[-octets:].decode(errors="replace") if self.log.exists() else "(no log)"

    def rss_kib(self) -> int:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    def cpu_s(self) -> float:
        """Processor seconds that the process has used, user and system."""
        assert self.process is not None
        return cpu_seconds(self.process.pid)


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def freeze(pid: int) -> None:
    """SIGSTOP to a process and then, for it makes no more, to those it made. Returns when all stand still."""
    _stop(pid)
    for each in children(pid):
        _stop(each)


def _stop(pid: int) -> None:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        while not all(_state(task) in "TZX" for task in Path(f"/proc/{pid}/task").iterdir()):
            time.sleep(0.001)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def clean_environ(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would steer a node or an SDK from outside the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIMX_", "OTEL_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **extra}


class Appearance:
    """Waits for a file to appear or for a process to end, whichever is first (Linux: inotify, pidfd)."""

    _MOVED_TO, _CLOSE_WRITE = 0x80, 0x8

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        libc = ctypes.CDLL(None, use_errno=True)
        self._watch = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self._watch >= 0, os.strerror(ctypes.get_errno())
        folder = os.fsencode(self._path.parent)
        assert libc.inotify_add_watch(self._watch, folder, self._MOVED_TO | self._CLOSE_WRITE) >= 0
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._watch)

    def wait(self, pid: int, patience_s: float) -> bool:
        """True when the file is there, False when the process ended or the time is up."""
        ended = os.pidfd_open(pid)
        try:
            until = time.monotonic() + patience_s
            while not self._path.exists():
                left = until - time.monotonic()
                readable, _, _ = select.select([self._watch, ended], [], [], max(0.0, left))
                if not readable or ended in readable:
                    return False
                os.read(self._watch, 65536)
            return True
        finally:
            os.close(ended)


def receipt_id(answer: bytes | str) -> str:
    """The message's id in the text of a 250: a ULID."""
    text = answer.decode() if isinstance(answer, bytes) else answer
    found = re.search(r"<([0-9A-Z]{26})>", text)
    assert found is not None, f"no id in {text!r}"
    return found[1]
