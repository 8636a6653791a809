"""RabbitMQ from Debian, as it comes: its own node, epmd and folders on loopback, driven by aio-pika (`bench/amqp.py`).

One durable queue for each mailbox, persistent messages, publisher confirms. It starts apart from a RabbitMQ that the
machine may run, and takes its epmd with it when it goes.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import processes
from bench.generator import Result, Unavailable
from bench.load import Answering

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_S = 60.0
DRIVERS = 2
"""Processes that publish: one is a core's worth of aio-pika, and RabbitMQ is not what is to wait for it."""


class RabbitMq(Answering):
    def __init__(self, folder: Path, queues: int) -> None:
        super().__init__()
        if not SERVER.exists():
            raise Unavailable("RabbitMQ is not installed; apt-get install rabbitmq-server")
        self._folder = folder
        self._queues = queues
        self.port, self._distribution, self._epmd = _free_ports(3)
        for part in ("mnesia", "log"):
            (folder / part).mkdir(parents=True)
        for file in ("rabbitmq.conf", "plugins", "env"):
            (folder / file).write_text("[].\n" if file == "plugins" else "")

    @property
    def version(self) -> str:
        found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
        return found[-1].name.partition("-")[2]

    def _environ(self) -> dict[str, str]:
        folder = self._folder
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # where the Erlang cookie goes
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"aimx-bench-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        with (self._folder / "out").open("wb") as out:
            self._process = subprocess.Popen([SERVER], env=self._environ(), stdout=out, stderr=out, cwd=self._folder)
        try:
            self._wait()
            yield
        finally:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
            # epmd refuses to go while a node is registered with it; ours is gone.
            subprocess.run(["epmd", "-kill"], env=self._environ(), capture_output=True, check=False, timeout=10)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        limit = time.monotonic() + START_S
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"RabbitMQ did not start: {(self._folder / 'out').read_text()[-2000:]}")

    def cpu_s(self) -> float:
        return processes.cpu_s(self._process.pid)

    def load(self, count: int, *, connections: int, size: int) -> Result:
        """All at once: each connection publishes when its last message was confirmed."""
        said = self._drive("load", DRIVERS, count=count // DRIVERS, connections=connections // DRIVERS, size=size)
        waits = sorted(wait for one in said for wait in one["ms"])
        first, last = min(one["first_at"] for one in said), max(one["last_at"] for one in said)
        self.answered += len(waits)
        return Result(len(waits), 0, len(waits) / (last - first), first, last, percentiles(waits))

    def paced(self, count: int, *, rate: float, connections: int, size: int) -> Result:
        """At a rate; `body_ms`: from when a message was due until a consumer that waits for it has it."""
        (said,) = self._drive("paced", 1, count=count, connections=connections, size=size, rate=rate)
        first, last, confirmed, body = said["first_at"], said["last_at"], said["ms"], said["body_ms"]
        return Result(
            count, 0, count / (last - first), first, last, percentiles(confirmed), {}, percentiles(body), len(body)
        )

    def _drive(self, mode: str, drivers: int, **flags: Any) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "bench.amqp", mode, "--port", str(self.port), "--queues", str(self._queues)]
        command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        with ExitStack() as stack:
            running = [
                stack.enter_context(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
                )
                for _ in range(drivers)
            ]
            for one in running:
                assert one.stdin is not None
                assert one.stdout is not None
                one.stdout.readline()  # it is connected
            for one in running:
                one.stdin.write("go\n")  # type: ignore[union-attr]
            return [json.loads(one.communicate(timeout=120)[0]) for one in running]


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {name: ordered[min(int(q * len(ordered)), len(ordered) - 1)] for name, q in _QUANTILES.items()}
    return {**at, "max": ordered[-1]}


_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]
