"""The compiled load generator (`bench/generator`, Go, standard library only): built once, run with a plan."""

import itertools
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.node_process import Account

SOURCE = Path(__file__).parent / "generator"
LIMIT_S = 120


class Unavailable(Exception):
    """Something this benchmark needs is not on this machine."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of the generator said. Times in milliseconds."""

    accepted: int
    refused: int
    per_second: float
    first_at: float
    last_at: float
    submit_ms: dict[str, float]
    exists_ms: dict[str, float] = field(default_factory=dict)
    body_ms: dict[str, float] = field(default_factory=dict)
    read: int = 0


@dataclass(frozen=True, slots=True)
class Sink:
    """A running collector."""

    endpoint: str
    pid: int


class Generator:
    """Runs in `folder`, where its binary and the account files go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = itertools.count()
        self._binary = folder / "generator"
        try:
            subprocess.run(
                ["go", "build", "-o", self._binary, "."], cwd=SOURCE, check=True, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise Unavailable("the generator is written in Go; install golang-go") from None
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"the generator does not build: {error.stderr}") from None

    def run(
        self, smtp: str, senders: Sequence[Account], recipients: Sequence[Account], *, count: int, **options: Any
    ) -> Result:
        """`options` are the generator's flags: mode, imap, ca, connections, size, rate, traceparent, workflow."""
        command = self._command(senders, recipients, {"smtp": smtp, "count": count, **options})
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        said = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
        if done.returncode != 0:
            raise RuntimeError(f"the generator failed: {said.get('error')}")
        known = Result.__dataclass_fields__
        return Result(**{name: value for name, value in said.items() if name in known and value is not None})

    @contextmanager
    def held(self, imap: str, accounts: Sequence[Account], *, connections: int, **options: Any) -> Iterator[None]:
        """So many IMAP sessions that wait in IDLE."""
        command = self._command(
            accounts, accounts, {"mode": "hold", "imap": imap, "connections": connections, **options}
        )
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if process.stdout.readline() != "held\n":
                raise RuntimeError("not all sessions could be opened")
            yield
            process.communicate()

    def _command(self, senders: Sequence[Account], recipients: Sequence[Account], options: dict[str, Any]) -> list[str]:
        command = [str(self._binary)]
        for name, accounts in (("senders", senders), ("recipients", recipients)):
            path = self._folder / f"{name}-{next(self._files)}.json"
            path.write_text(json.dumps([{"address": a.address, "password": a.password} for a in accounts]))
            command += [f"-{name}", str(path)]
        flags = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
        return command + [f"-{name}={value}" for name, value in flags.items()]

    @contextmanager
    def sink(self) -> Iterator["Sink"]:
        """An OTLP collector that keeps nothing."""
        process = subprocess.Popen([str(self._binary), "sink"], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield Sink(f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid)
        finally:
            process.kill()
            process.wait(5)
