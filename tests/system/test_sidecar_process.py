"""The HTTP side in a process of its own, in its own database role, and from a standby."""

import http.client
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.node_process import AIMX, Account, NodeProcess, clean_environ
from tests.otlp_receiver import wait_until
from tests.postgres_server import PostgresServer, _as_postgres


@dataclass
class House:
    """A node in the roles that `aimx db init` made: mail as aimx_app, the log as aimx_seq."""

    server: PostgresServer
    node: NodeProcess
    roles: dict[str, str]
    planner: Account
    eid: str


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with PostgresServer() as server:
        folder = tmp_path_factory.mktemp("house")
        node = NodeProcess(folder)
        roles = json.loads(node.aimx("db", "init", server.database(), "--json").stdout)
        node.configure(f'[audit]\ndatabase = "{roles["aimx_seq"]}"\n')
        node.flags = ("--database", roles["aimx_app"], "--workers", "2")
        with node:
            planner = node.add_agent("planner")
            with node.smtp(planner) as client:
                client.mail(planner.address)
                client.rcpt(planner.address)
                _, answer = client.data(f"From: {planner.address}\r\nSubject: shown\r\n\r\nhello\r\n")
            eid = re.search(rb"<([0-9A-Z]{26})>", answer)[1].decode()  # type: ignore[index]
            yield House(server, node, roles, planner, eid)


@dataclass
class Sidecar:
    node: NodeProcess
    port: int

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        client = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.node.tls(), timeout=15)
        token = Path(self.node.ready["admin_token_file"]).read_text().strip()
        try:
            client.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = client.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            client.close()


@contextmanager
def sidecar(house: House, database: str, *options: str) -> Iterator[Sidecar]:
    command = [*AIMX, "sidecar", "--data", str(house.node.data), "--config", str(house.node.toml)]
    command += ["--database", database, "--http", "127.0.0.1:0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environ({}), text=True
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        found = re.search(r":(\d+)$", ready.strip())
        assert found is not None, (ready, process.stderr.read() if process.stderr else "")
        yield Sidecar(house.node, int(found[1]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def raw(eid: str) -> str:
    return f"/v1/messages/{eid}/raw"


def test_as_aimx_api_it_shows_messages_and_writes_down_that_it_did(house: House) -> None:
    with sidecar(house, house.roles["aimx_api"]) as side:
        assert side.get(f"/v1/messages/{house.eid}")[0] == 200
        assert side.get("/readyz")[0] == 200
        status, _, body = side.get(raw(house.eid))
        assert status == 200
        assert b"Subject: shown" in body
        assert side.get("/checkpoint")[0] == 200
    with psycopg.connect(house.roles["aimx_app"]) as db:
        rows = db.execute("SELECT leaf FROM aimx.event").fetchall()
    assert any(b'"ev":"mailbox.accessed"' in leaf for (leaf,) in rows)


def test_a_role_that_may_only_read_is_refused_what_leaves_a_record(house: House) -> None:
    name = house.roles["aimx_api"].rpartition("/")[2]
    house.server.run("CREATE ROLE looker LOGIN; GRANT pg_read_all_data TO looker")
    with sidecar(house, house.server.url(name, "looker")) as side:
        assert side.get("/v1/messages")[0] == 200
        assert side.get("/readyz")[0] == 200
        status, headers, body = side.get(raw(house.eid))
    assert status == 403
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["type"] == "urn:aimx:problem:read-only"
    assert b"shown" not in body


def test_from_a_standby_it_reads_what_has_got_there(house: House) -> None:
    with standby(house.server) as replica:
        name = house.roles["aimx_api"].rpartition("/")[2]
        with sidecar(house, house.roles["aimx_api"], "--replica", replica.url(name, "aimx_api")) as side:
            assert side.get(f"/v1/messages/{house.eid}")[0] == 200
            with house.node.smtp(house.planner) as client:
                client.mail(house.planner.address)
                client.rcpt(house.planner.address)
                _, answer = client.data(f"From: {house.planner.address}\r\n\r\nlater\r\n")
            eid = re.search(rb"<([0-9A-Z]{26})>", answer)[1].decode()  # type: ignore[index]
            wait_until(lambda: side.get(f"/v1/messages/{eid}")[0] == 200)
            assert side.get(raw(eid))[0] == 200, "the record goes to the primary"


@contextmanager
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A hot standby of the whole server."""
    replica = PostgresServer(primary.bin)
    if _as_postgres():
        shutil.chown(replica.folder, "postgres")
    options = ["-U", "postgres", "-D", str(replica.data), "-R", "-X", "stream", "-c", "fast", "--no-sync"]
    subprocess.run(
        [*_as_postgres(), str(primary.bin / "pg_basebackup"), "-h", "127.0.0.1", "-p", str(primary.port), *options],
        check=True,
        capture_output=True,
        cwd="/",
    )
    try:
        replica.start()
        yield replica
    finally:
        replica.stop("immediate")
        shutil.rmtree(replica.folder, ignore_errors=True)


def test_without_a_database_it_says_what_it_needs(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    done = node.aimx("sidecar", "--data", str(node.data), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("aimx: database.url: a sidecar needs the database that nodes share")
