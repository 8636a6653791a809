"""A node's life as the system sees it: one process that serves, or a parent that binds and workers that serve.

The parent binds every socket once for each worker (SO_REUSEPORT: the system spreads connections over them), forks the
workers and does nothing else. A worker that dies is replaced on the same sockets, so nobody is refused meanwhile. When
the parent dies, its workers end in good order: each holds one end of a pipe that only the parent writes to.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import uvloop

from aimx.audit.keys import KeyUnusable
from aimx.audit.log import LogError
from aimx.config import Endpoint, SettingError, Settings
from aimx.data_folder import READY, CannotStart, Ready, announce, lock, prepare, withdraw
from aimx.membership import claim_name
from aimx.node import Node, Sockets, bind, furnish
from aimx.telemetry import logs, workers
from aimx.telemetry.export import TelemetrySettingError

log = logging.getLogger("aimx.supervisor")

DESCRIPTORS = 65_536
YOUNG = 10_000
"""Objects made since the collector's last round that begin the next; a message makes some hundred, and drops them."""
STOP_WITHIN = 10.0
"""Seconds a worker has to end in good order; then it is killed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a worker that died is replaced; doubled each time, until one has lived `SOUND` seconds."""
SOUND = 30.0

Reload = Callable[[], Settings]
Announce = Callable[[Ready, bool], None]
"""Told where the node answers and whether this is its first start."""


def serve(settings: Settings, reload: Reload | None = None, told: Announce | None = None) -> int:
    """Run a node until SIGTERM or SIGINT.

    Returns the exit code: 0 after a stop that was asked for, 1 when it could not start (one line on standard error).
    """
    logs.configure(settings.log_level)
    allow_descriptors()
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # below it, strangers write our log
    try:
        if settings.workers > 1:
            return Parent(settings, reload, told).run()
        run(Node(settings, reload), told)
    except (CannotStart, SettingError, KeyUnusable, LogError, TelemetrySettingError) as error:
        print(f"aimx: {error}", file=sys.stderr)
        return 1
    return 0


def run(node: Node, told: Announce | None = None, lifeline: int | None = None) -> None:
    """One process, from start to stop. It also stops when `lifeline`, a pipe, is closed at its other end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(node, told, lifeline))


async def _run(node: Node, told: Announce | None, lifeline: int | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if lifeline is not None:
        loop.add_reader(lifeline, stopped.set)
    ready = await node.start()
    settle()
    try:
        if told is not None:
            told(ready, node.first_start)
        await stopped.wait()
        if lifeline is not None:
            loop.remove_reader(lifeline)
        log.info("stopping", extra={"event": "node.stopping"})
    finally:
        await node.stop()


def settle() -> None:
    """Spare what lives as long as the process from the garbage collector's rounds.

    What a message leaves behind goes by reference counts; the rounds are for the few cycles among it, and each full one
    would stop the loop to walk through every module.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)


def allow_descriptors() -> None:
    """As many open files as the system allows, within reason: many systems begin with 1,024, and it is one a client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


# ── the parent ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Worker:
    """One place among the workers, and who has it now."""

    number: int
    sockets: Sockets
    pid: int = 0
    """0: nobody."""
    began: float = 0.0
    pause: float = FIRST_PAUSE
    """How long to wait before the next one, if this one dies."""
    due: float = 0.0
    """When the next one is to be begun."""
    says: int = -1
    """The end of a pipe on which it says that it serves."""
    said: bytearray = field(default_factory=bytearray)
    ready: bool = False


class Parent:
    """Of the workers of one node. It runs no event loop and holds nothing that a fork could break."""

    def __init__(self, settings: Settings, reload: Reload | None, told: Announce | None) -> None:
        self._settings = settings
        self._reload = reload
        self._told = told
        self._workers: list[Worker] = []
        self._lifeline, self._holds = os.pipe2(os.O_CLOEXEC)
        self._woken, self._wakes = socket.socketpair()
        self._stopping = False
        self._announced = False

    def run(self) -> int:
        """Until a signal. Raises CannotStart. 1 when a worker could not even start once."""
        settings = self._settings
        folder = prepare(settings.data)
        held = lock(folder)
        try:
            withdraw(folder / READY, settings.ready_file)
            first = not (folder / "keys").exists()
            furnish(folder, settings)  # before several find it missing at once
            workers.clear(folder)
            asyncio.run(claim_name(settings, folder))
            self._bind()
            self._listen_to_signals()
            try:
                return self._watch(first)
            finally:
                withdraw(folder / READY, settings.ready_file)
                self._stop()
        finally:
            os.close(held)

    def _bind(self) -> None:
        """One set of sockets for each worker, all on the same addresses: the first set settles port 0."""
        settings = self._settings
        for number in range(settings.workers):
            sockets = bind(settings, shared=True)
            if not number:
                found = {name: Endpoint(*listening.getsockname()[:2]) for name, listening in sockets.items()}
                settings = settings.model_copy(update={"listen": settings.listen.model_copy(update=found)})
            self._workers.append(Worker(number, sockets))

    def _listen_to_signals(self) -> None:
        self._woken.setblocking(False)
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._stopping = True

    def _watch(self, first: bool) -> int:
        """Begin workers, hear that they serve, replace those that die."""
        while not self._stopping:
            now = time.monotonic()
            for worker in self._workers:
                if not worker.pid and worker.due <= now:
                    self._begin(worker)
            self._wait()
            for worker in self._workers:
                if worker.pid and _ended(worker.pid) and not self._lost(worker):
                    return 1
            if not self._announced and all(worker.ready for worker in self._workers):
                self._announce(first)
        return 0

    def _wait(self) -> None:
        """Until something happens: a signal, a worker's word, or the time to begin one."""
        says = {worker.says: worker for worker in self._workers if worker.says >= 0}
        dues = [worker.due for worker in self._workers if not worker.pid]
        seconds = max(0.0, min(dues) - time.monotonic()) if dues else None
        found, _, _ = select.select([self._woken.fileno(), *says], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        for end in found:
            if end in says:
                _hear(says[end])

    def _begin(self, worker: Worker) -> None:
        worker.says, say = os.pipe2(os.O_CLOEXEC)
        worker.said.clear()
        worker.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        worker.pid = os.fork()
        if worker.pid:
            os.close(say)
            return
        code = 1
        try:
            code = self._work(worker, say)
        finally:
            os._exit(code)

    def _work(self, worker: Worker, say: int) -> int:
        """The worker's whole life, in its own process."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._holds)
        for other in self._workers:
            if other is not worker:
                for listening in other.sockets.values():
                    listening.close()

        def told(ready: Ready, _first: bool) -> None:
            os.write(say, json.dumps(asdict(ready)).encode() + b"\n")
            os.close(say)

        try:
            node = Node(self._settings, self._reload, sockets=worker.sockets, worker=worker.number)
            run(node, told, self._lifeline)
        except (CannotStart, SettingError, KeyUnusable, LogError, TelemetrySettingError) as error:
            print(f"aimx: {error}", file=sys.stderr, flush=True)
            return 1
        except BaseException:
            log.exception("a worker ended badly", extra={"event": "worker.failed", "worker": worker.number})
            return 1
        return 0

    def _lost(self, worker: Worker) -> bool:
        """A worker has ended unasked. False when it is of no use to begin another."""
        if worker.says >= 0:
            os.close(worker.says)
            worker.says = -1
        worker.pid, served, worker.ready = 0, worker.ready, False
        if not served and not self._announced:
            return False  # it has said why
        lived = time.monotonic() - worker.began
        worker.pause = FIRST_PAUSE if lived >= SOUND else min(LONGEST_PAUSE, worker.pause * 2)
        worker.due = time.monotonic() + worker.pause
        log.error(
            "worker %d ended; another begins in %.1f s",
            worker.number,
            worker.pause,
            extra={"event": "worker.ended", "worker": worker.number},
        )
        return True

    def _announce(self, first: bool) -> None:
        self._announced = True
        ready = Ready(**json.loads(self._workers[0].said))
        if self._told is not None:
            self._told(ready, first)
        # Last: who waits for that file then finds all the others.
        announce(ready, self._settings.data / READY, self._settings.ready_file)

    def _stop(self) -> None:
        """Refuse what is new, ask the workers to end, wait, and kill who does not."""
        for worker in self._workers:
            for listening in worker.sockets.values():
                listening.close()
            if worker.pid:
                os.kill(worker.pid, signal.SIGTERM)
        until = time.monotonic() + STOP_WITHIN
        while any(worker.pid for worker in self._workers):
            late = time.monotonic() > until
            for worker in self._workers:
                if worker.pid and late:
                    log.error("worker %d did not end in time", worker.number, extra={"event": "worker.killed"})
                    os.kill(worker.pid, signal.SIGKILL)
                if worker.pid and _ended(worker.pid, wait=late):
                    worker.pid = 0
            time.sleep(0.02)


def _hear(worker: Worker) -> None:
    heard = os.read(worker.says, 65_536)
    worker.said += heard
    if not heard or worker.said.endswith(b"\n"):
        worker.ready = bool(heard)
        os.close(worker.says)
        worker.says = -1


def _ended(pid: int, *, wait: bool = False) -> bool:
    found, _ = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return found == pid
