"""The Dockerfile replayed in a clean virtual environment: what comes of it as the image's user on a read-only tree."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node_process import clean_environ
from tests.otlp_receiver import wait_until
from tests.ports import free_port
from tests.stack.servers import ROOT

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
USER = 10001
LISTENERS = ("SMTP", "SMTPS", "IMAP", "IMAPS", "HTTP")
AS_ROOT = "needs root: another user, and a mount namespace to make the tree read-only in"


def stage() -> dict[str, str]:
    """ENV of the last stage."""
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^ENV (.*)$", last, re.M))))


@pytest.fixture(scope="module")
def environment() -> Iterator[Path]:
    """What the first stage makes, in another place than /opt/aimx: COPY and RUN, as they stand."""
    place = Path(tempfile.mkdtemp(prefix="aimx-image-"))  # pytest's own folders let no other user in
    place.chmod(0o755)
    source = place / "src"
    source.mkdir()
    shipped = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for names, target in re.findall(r"^COPY (?!--)(.+) (\S+)$", DOCKERFILE, re.M):
        for name in names.split():
            assert name in shipped, f".dockerignore leaves {name} out"
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source / target)
    (build,) = re.findall(r"^RUN (python -m venv .*)$", DOCKERFILE, re.M)
    build = build.replace("/opt/aimx", str(place / "aimx")).replace("python -m", f"{sys.executable} -m", 1)
    subprocess.run(
        ["sh", "-ec", build], cwd=source, check=True, capture_output=True, timeout=500, env=clean_environ({})
    )
    shutil.rmtree(source)
    yield place / "aimx"
    shutil.rmtree(place, ignore_errors=True)


def test_only_what_runs_is_in_it(environment: Path) -> None:
    assert not (environment / "bin" / "pip").exists()
    packages = {path.name for path in next(environment.glob("lib/python*/site-packages")).iterdir()}
    assert "aimx" in packages
    assert not {"pytest", "mypy", "ruff", "hypothesis", "tests", "setuptools", "pip"} & packages


def test_the_node_serves_as_another_user_on_a_read_only_tree(environment: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip(f"NOT TESTED: {AS_ROOT}")
    data = environment.parent / "data"
    data.mkdir(mode=0o700)
    os.chown(data, USER, USER)
    settings = stage() | {"AIMX_DATA": str(data), "PATH": f"{environment / 'bin'}:/usr/bin:/bin"}
    settings |= {f"AIMX_LISTEN__{name}": f"0.0.0.0:{free_port()}" for name in LISTENERS}

    def inside(*command: str) -> list[str]:
        # All that Compose takes from the container: a writable tree, capabilities, new privileges.
        bound = f"mount --bind {data} {data} && mount -o remount,bind,ro / && mount -t tmpfs -o ro none /var/tmp"
        least = (
            f"setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
        )
        return ["unshare", "--mount", "sh", "-ec", f'{bound}; cd {data}; exec {least} -- "$@"', "sh", *command]

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(inside(*command), env=settings, capture_output=True, text=True, check=False, timeout=60)

    if (denied := run("true")).returncode:
        pytest.skip(f"NOT TESTED: {AS_ROOT}: {denied.stderr.strip()}")
    assert run("sh", "-c", f"touch {environment}/x || touch /x").returncode != 0, "the tree is read-only"
    assert run("aimx", "doctor", "--ready").returncode == 1
    node = subprocess.Popen(inside("aimx", "serve"), env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said: list[bytes] = []
    assert node.stdout is not None
    threading.Thread(target=lambda out: said.extend(out), args=(node.stdout,), daemon=True).start()
    try:
        wait_until(lambda: (data / "ready.json").exists() or node.poll() is not None, 60)
        health = run("aimx", "doctor", "--ready")
        assert (health.returncode, health.stdout) == (0, "ready\n"), (health.stderr, b"".join(said).decode())
        made = json.loads(run("aimx", "agent", "add", "planner", "--json").stdout)
        assert made["address"] == "planner@fabric.local"
        assert json.loads(run("aimx", "audit", "verify", "--json").stdout)["ok"]
    finally:
        node.terminate()
        assert node.wait(15) == 0, b"".join(said).decode()[-3000:]
    assert data.stat().st_uid == USER
