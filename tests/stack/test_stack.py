"""docker-compose.yml and what it mounts, as far as that can be shown without a container engine."""

import json
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.interop.programs import need, run
from tests.node_process import NodeProcess
from tests.postgres_server import PostgresServer
from tests.stack.servers import ROOT

SECRETS = ("POSTGRES_PASSWORD", "AIMX_APP_PASSWORD", "AIMX_SEQ_PASSWORD", "GRAFANA_PASSWORD")
OURS = "aimx:latest"
"""Built here, from the Dockerfile."""
LEAST = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


def compose(*arguments: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """With no variable but those given, whatever .env says."""
    with tempfile.NamedTemporaryFile() as empty:
        command = [need("docker-compose"), "--file", str(ROOT / "docker-compose.yml"), "--env-file", empty.name]
        return subprocess.run(
            [*command, *arguments],
            env={"PATH": "/usr/bin:/bin", **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """The file as Compose understands it."""
    done = compose("config", environ=dict.fromkeys(SECRETS, "a-secret"))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


@pytest.mark.parametrize("missing", SECRETS)
def test_there_is_no_default_password(missing: str) -> None:
    done = compose("config", environ={name: "a-secret" for name in SECRETS if name != missing})
    assert done.returncode != 0
    assert "run make stack-secrets first" in done.stderr


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    script = tmp_path / "deploy" / "stack-secrets"
    script.write_bytes((ROOT / "deploy" / "stack-secrets").read_bytes())
    run("sh", str(script))
    made = dict(line.split("=") for line in (tmp_path / ".env").read_text().split())
    assert made.keys() == set(SECRETS)
    assert len(set(made.values())) == len(SECRETS)
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in made.values())
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    run("sh", str(script))
    assert dict(line.split("=") for line in (tmp_path / ".env").read_text().split()) == made


def test_every_service_has_the_least_rights(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        assert {key: service.get(key) for key in LEAST} == LEAST, name
        assert not service.get("privileged"), name
        assert not service.get("cap_add"), name


def test_only_loopback_is_published(stack: dict[str, Any]) -> None:
    published = {name: service.get("ports", []) for name, service in stack["services"].items()}
    assert published["aimx"]
    assert not published["postgres"]
    for ports in published.values():
        assert all(str(port).startswith("127.0.0.1:") for port in ports), ports
    assert stack["networks"]["inside"]["internal"] is True


def test_images_are_pinned_and_data_is_in_volumes(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        if service["image"] != OURS:
            assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]), name
        for volume in service.get("volumes", []):
            source, _, options = volume.partition(":")
            if source.startswith("/"):
                assert Path(source).exists(), source
                assert options.endswith(":ro"), volume
            else:
                assert source in stack["volumes"], volume


def test_who_serves_is_asked_whether_it_does(stack: dict[str, Any]) -> None:
    """The image's own check for AIMX; the collector's image has no program that could ask."""
    asked = {name: one.get("healthcheck", {}) for name, one in stack["services"].items()}
    checked = {name for name, check in asked.items() if check.get("test", ["NONE"]) != ["NONE"]}
    assert checked == {"postgres", "jaeger", "prometheus", "grafana"}
    assert re.search(r'^HEALTHCHECK .*CMD \["aimx", "doctor", "--ready"\]$', (ROOT / "Dockerfile").read_text(), re.M)


def test_prometheus_takes_its_configuration(stack: dict[str, Any], tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    mounted = {part.split(":")[1]: part.split(":")[0] for part in stack["services"]["prometheus"]["volumes"]}
    (tmp_path / "ca.pem").write_text("")
    (tmp_path / "metrics.token").write_text("x")
    text = text.replace("/etc/prometheus/rules", mounted["/etc/prometheus/rules"]).replace("/scrape", str(tmp_path))
    (tmp_path / "prometheus.yml").write_text(text)
    done = run("promtool", "check", "config", str(tmp_path / "prometheus.yml"))
    assert re.search(rb"\d\d+ rules found", done.stdout), done.stdout


def test_grafana_is_given_what_there_is(stack: dict[str, Any]) -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "aimx.yaml").read_text())["datasources"]
    services = stack["services"]
    for source in sources:
        assert re.fullmatch(r"http://(\w+):\d+", source["url"])[1] in services  # type: ignore[index]
    uids = {source["uid"] for source in sources}
    led = sources[0]["jsonData"]["exemplarTraceIdDestinations"]
    assert {one["datasourceUid"] for one in led} <= uids
    (provider,) = yaml.safe_load((folder / "dashboards" / "aimx.yaml").read_text())["providers"]
    mounted = {part.split(":")[1]: Path(part.split(":")[0]) for part in services["grafana"]["volumes"]}
    boards = mounted[provider["options"]["path"]]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (boards / home.name).exists()
    for board in boards.glob("*.json"):
        asked = {item["type"] for item in json.loads(board.read_text())["templating"]["list"]}
        assert asked == {"datasource"}, board


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"fsync": "off"}) as running:
        yield running


def test_two_workers_serve_with_the_rights_that_the_stack_gives_them(server: PostgresServer, tmp_path: Path) -> None:
    """roles.sh and `aimx db init`, as the services `postgres` and `database` run them; then `aimx`, as its roles."""
    owner = server.database()
    name = owner.rpartition("/")[2]
    environ = {"AIMX_APP_PASSWORD": "app's \\ secret", "AIMX_SEQ_PASSWORD": "seq"}
    where = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "POSTGRES_DB": name, "PATH": "/usr/bin:/bin"}
    need("psql")
    run("sh", str(ROOT / "deploy" / "postgres" / "roles.sh"), env=environ | where)
    node = NodeProcess(
        tmp_path,
        flags=("--workers", "2"),
        environ={
            "AIMX_DATABASE__URL": server.url(name, "aimx_app"),
            "AIMX_AUDIT__DATABASE": server.url(name, "aimx_seq"),
        },
    )
    for command in ("init", "migrate"):
        said = node.aimx("db", command, owner).stdout
        assert "aimx_app  postgresql" not in said, "its password stays as it was given"
    with node:
        planner = node.add_agent("planner")
        with node.smtp(planner) as client:
            client.sendmail(planner.address, [planner.address], "Subject: hi\r\n\r\nhi\r\n")
        assert len(node.bodies(planner)) == 1
        assert node.aimx("doctor", "--ready").stdout == "ready\n"
        assert json.loads(node.aimx("audit", "verify", "--json").stdout)["ok"]
    done = node.aimx("doctor", "--ready", check=False)
    assert (done.returncode, done.stderr) == (1, "aimx: the node is not running\n")
