"""A scrape of any worker answers for its node: several real processes, one of them killed, and one truth."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from aimx.telemetry.exposition import render
from aimx.telemetry.metrics import Metrics
from aimx.telemetry.workers import FOLDER, Workers, clear
from tests.node_process import NodeProcess
from tests.otlp_receiver import wait_until
from tests.postgres_server import PostgresServer
from tests.system.traffic import http

SPAWN = multiprocessing.get_context("spawn")


def work(data: Path, number: int, line: Connection) -> None:
    own = Metrics()
    workers = Workers(data, number, own)
    line.send("ready")
    while True:
        match line.recv():
            case "count", amount:
                own.counter("aimx.messages.accepted").labels("agent").add(amount)
                own.histogram("aimx.depth").labels().record(amount)
            case "gauge", sessions, depth:
                own.gauge("aimx.smtp.sessions").labels().set(sessions)
                own.gauge("aimx.queue.depth").labels().set(depth)
            case "publish":
                workers.publish()
            case "scrape":
                line.send(render(workers.snapshot()))
                continue
            case "end":
                workers.publish()
                return
        line.send("done")


class Worker:
    def __init__(self, data: Path, number: int) -> None:
        self.line, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=work, args=(data, number, theirs), daemon=True)
        self.process.start()
        assert self.line.recv() == "ready"

    def tell(self, *order: object) -> str:
        self.line.send(order[0] if len(order) == 1 else order)
        answer: str = self.line.recv()
        return answer

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def end(self) -> None:
        if self.process.is_alive():
            self.line.send("end")
            self.process.join()


@contextmanager
def working(data: Path, count: int) -> Iterator[list[Worker]]:
    workers = [Worker(data, number) for number in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.end()


def value(scrape: str, series: str) -> float | None:
    found = [line.rpartition(" ")[2] for line in scrape.splitlines() if line.rpartition(" ")[0] == series]
    return float(found[0]) if found else None


ACCEPTED = 'aimx_messages_accepted_total{door="agent"}'
DEPTH = "aimx_queue_depth"


def test_any_worker_answers_for_all_and_a_killed_ones_counts_stay_once(tmp_path: Path) -> None:
    with working(tmp_path, 3) as workers:
        for amount, worker in enumerate(workers, 1):
            worker.tell("count", amount)
            worker.tell("gauge", 2, 5)
            worker.tell("publish")
        scrapes = [worker.tell("scrape") for worker in workers]
        assert {value(scrape, ACCEPTED) for scrape in scrapes} == {6}
        assert {value(scrape, "aimx_depth_count") for scrape in scrapes} == {3}
        assert {value(scrape, "aimx_smtp_sessions") for scrape in scrapes} == {6}, "sessions add up"
        assert {value(scrape, DEPTH) for scrape in scrapes} == {5}, "there is one queue"

        workers[2].kill()
        left = workers[0].tell("scrape")
        assert (value(left, ACCEPTED), value(left, "aimx_smtp_sessions")) == (6, 4), (
            "its sessions are gone, not its work"
        )
        workers[2] = Worker(tmp_path, 2)
        assert value(workers[1].tell("scrape"), ACCEPTED) == 6
        workers[2].tell("count", 10)
        assert value(workers[2].tell("scrape"), ACCEPTED) == 16
        assert value(workers[0].tell("scrape"), ACCEPTED) == 16


def test_a_counter_never_goes_back_whichever_worker_is_asked_next(tmp_path: Path) -> None:
    """Nothing is published but by scrapes: what one told, the next one knows."""
    seen = 0.0
    with working(tmp_path, 2) as workers:
        for turn in range(20):
            workers[turn % 2].tell("count", 1)
            told = value(workers[turn % 2].tell("scrape"), ACCEPTED)
            assert told is not None
            assert told > seen
            seen = told


def test_a_node_started_anew_counts_from_nothing_and_a_spoilt_file_harms_no_scrape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Metrics()
    own.counter("aimx.messages.accepted").labels("agent").add(4)
    Workers(tmp_path, 0, own).publish()
    clear(tmp_path)
    assert value(render(Workers(tmp_path, 0, Metrics()).snapshot()), ACCEPTED) is None
    (tmp_path / FOLDER / "1.json").write_text('{"pid": 1')
    assert "aimx_smtp_sessions 0" in render(Workers(tmp_path, 0, Metrics()).snapshot())
    assert "1.json" in caplog.text or any("1.json" in str(record.__dict__) for record in caplog.records)


def test_a_scrape_of_a_real_node_answers_for_its_workers_also_after_one_was_killed(tmp_path: Path) -> None:
    with PostgresServer() as server:
        flags = ("--database", server.database(), "--workers", "2")
        with NodeProcess(tmp_path, 'node = "n1"\n', flags=flags) as node:
            agent = node.add_agent("one")
            accepted = 0

            def send() -> None:
                nonlocal accepted
                for _ in range(8):  # a connection each: the system spreads them over the workers
                    with node.smtp(agent) as client:
                        client.sendmail(agent.address, [agent.address], f"From: {agent.address}\r\n\r\nhello\r\n")
                    accepted += 1

            def told() -> set[float | None]:
                with http(node) as client:
                    seen = set()
                    for _ in range(6):
                        answer = client.get("/metrics", headers={"Connection": "close"})
                        seen.add(value(answer.text, ACCEPTED))
                return seen

            send()
            files = node.data / FOLDER
            wait_until(lambda: told() == {accepted}, 20)
            pids = {path: json.loads(path.read_bytes())["pid"] for path in files.glob("?.json")}
            assert len(set(pids.values())) == 2, "two processes"
            path, pid = min(pids.items())
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: json.loads(path.read_bytes())["pid"] != pid, 20)
            wait_until(lambda: told() == {accepted}, 20)
            send()
            wait_until(lambda: told() == {accepted}, 20)
