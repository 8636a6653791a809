"""Other people's servers for tests: Prometheus, the OpenTelemetry collector. On ports of their own."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.interop.programs import need
from tests.node_process import NodeProcess
from tests.otlp_receiver import wait_until
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
START_S = 40.0


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def running(command: list[str], log: Path, ready: str, environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """A server until the end of the block; `ready` is a URL that answers 200 once it serves."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(environ or {})})
    try:
        wait_until(lambda: answers(ready) or process.poll() is not None, START_S)
        assert process.poll() is None, log.read_text()[-3000:]
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """Of a query with one answer; 0 when there is none yet."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else 0.0


@contextmanager
def prometheus(folder: Path, node: NodeProcess, rules: Path) -> Iterator[Prometheus]:
    """One that scrapes the node each second, as docs/monitoring.md says, and evaluates the rules as often."""
    program = need("prometheus")
    host, port = node.endpoint("http")
    folder.mkdir(exist_ok=True)
    config = folder / "prometheus.yml"
    config.write_text(f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: aimx
    scheme: https
    tls_config: {{ca_file: {node.ready["ca"]}}}
    authorization: {{credentials_file: {node.ready["admin_token_file"]}}}
    static_configs: [{{targets: ["{host}:{port}"]}}]
""")
    url = f"http://127.0.0.1:{free_port()}"
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    command += [f"--web.listen-address={url.removeprefix('http://')}", "--enable-feature=exemplar-storage"]
    with running(command, folder / "prometheus.log", f"{url}/-/ready"):
        yield Prometheus(url)


def otelcol() -> str:
    """The collector that `make stack` has built, or the one that AIMX_OTELCOL names."""
    found = shutil.which(os.environ.get("AIMX_OTELCOL", str(ROOT / "build" / "otelcol" / "otelcol")))
    if found is None:
        pytest.skip("NOT TESTED: there is no collector; run `make stack`")
    return found


@contextmanager
def collector(folder: Path, jaeger: str, **options: str) -> Iterator[dict[str, str]]:
    """One with the project's own configuration; yields its OTLP endpoint (`otlp`) and metrics (`metrics`) as URLs.

    `jaeger` is HOST:PORT of an OTLP receiver; `options` go to the configuration's environment.
    """
    program = otelcol()
    ports = {name: str(free_port()) for name in ("GRPC_PORT", "HTTP_PORT", "PROMETHEUS_PORT", "HEALTH_PORT")}
    environ = {f"COLLECTOR_{name}": value for name, value in (ports | options).items()} | {"JAEGER_ENDPOINT": jaeger}
    command = [program, "--config", str(ROOT / "otel-collector.yaml")]
    health = f"http://127.0.0.1:{ports['HEALTH_PORT']}"
    with running(command, folder / "otelcol.log", health, environ):
        yield {
            "otlp": f"http://127.0.0.1:{ports['GRPC_PORT']}",
            "metrics": f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/metrics",
        }
