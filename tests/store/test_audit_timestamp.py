"""RFC 3161 time stamps: a real authority, made with `openssl ts`, asked over HTTP; we and openssl check its stamps."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aimx.audit import timestamp
from aimx.audit.anchoring import Failed, Signed, TimestampAuthority
from aimx.audit.anchors import SqliteAnchors
from aimx.audit.standing import Trust
from aimx.telemetry.span import Tracer
from aimx.tlog.errors import FormatError, ProofError
from tests.store.test_audit_bundle import Node

CONFIG = """\
[tsa]
default_tsa = one
[one]
serial = serial
crypto_device = builtin
signer_cert = tsa.pem
signer_key = tsa.key
default_policy = 1.2.3.4.1
digests = sha256
signer_digest = sha256
ess_cert_id_alg = sha256
accuracy = secs:1
[ext]
extendedKeyUsage = critical,timeStamping
keyUsage = critical,digitalSignature
basicConstraints = CA:FALSE
"""


@dataclass
class Authority:
    folder: Path
    url: str
    answer: bytes | None = None
    """Given instead of a stamp."""

    @property
    def roots(self) -> bytes:
        return (self.folder / "ca.pem").read_bytes()

    def openssl(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, check=False)


def make(folder: Path) -> None:
    (folder / "tsa.cnf").write_text(CONFIG)
    (folder / "serial").write_text("01\n")
    new = ["-newkey", "rsa:2048", "-nodes"]
    for command in (
        ["req", "-x509", *new, "-subj", "/CN=stamps of tests", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"],
        ["req", *new, "-subj", "/CN=stamper", "-keyout", "tsa.key", "-out", "tsa.csr"],
        [
            *("x509", "-req", "-in", "tsa.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "7"),
            *("-out", "tsa.pem", "-extfile", "tsa.cnf", "-extensions", "ext", "-days", "2"),
        ],
    ):
        done = subprocess.run(["openssl", *command], cwd=folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED: openssl is not installed")
    folder = tmp_path_factory.mktemp("tsa")
    make(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/timestamp-query"
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            command = ["ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query", "-out", "reply"]
            assert made.openssl(*command).returncode == 0
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(made.answer if made.answer is not None else (folder / "reply").read_bytes())

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Authority(folder, f"http://127.0.0.1:{server.server_address[1]}/tsr")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    made = Node(tmp_path / "data")
    await made.live(5)
    return made


def newest(node: Node) -> Signed:
    return Signed.parse((node.folder / "audit.checkpoint").read_text())


async def test_a_checkpoint_is_stamped_and_the_stamp_anchors_the_log(
    authority: Authority, node: Node, tmp_path: Path
) -> None:
    tsa = TimestampAuthority(authority.url, authority.roots, 60.0)
    with Tracer().start("checkpoint witness") as span:
        anchor = await tsa.anchor(newest(node), span)
    anchors = SqliteAnchors(node.folder / "anchors.db")
    anchors.add(anchor)
    anchors.close()
    report = await node.verify(trust=Trust(roots=authority.roots))
    assert report.words[2].startswith("ANCHORED(")
    assert report.standing is not None
    assert report.standing.stamped == 1
    assert (await node.verify()).words[2] == "NOT ANCHORED", "nobody trusts the authority"
    # OpenSSL, of the export, as its README says.
    node.export(tmp_path / "out")
    (stamp,) = (tmp_path / "out").glob("*/anchors/timestamp-*.tsr")
    done = authority.openssl(
        *("ts", "-verify", "-data", str(stamp.with_suffix(".note")), "-in", str(stamp), "-CAfile", "ca.pem")
    )
    assert done.returncode == 0, done.stderr


async def test_a_stamp_over_something_else_or_of_somebody_else_is_no_stamp(
    authority: Authority, node: Node, tmp_path: Path
) -> None:
    tsa = TimestampAuthority(authority.url, authority.roots, 60.0)
    with Tracer().start("checkpoint witness") as span:
        good = await tsa.anchor(newest(node), span)
    data = good.note.encode()
    timestamp.check(good.token, data, authority.roots)
    with pytest.raises(ProofError):
        timestamp.check(good.token, data + b"x", authority.roots)
    other = tmp_path / "other"
    other.mkdir()
    make(other)
    with pytest.raises(ProofError):
        timestamp.check(good.token, data, (other / "ca.pem").read_bytes())
    with pytest.raises(FormatError):
        timestamp.check(b"garbage", data, authority.roots)
    for at in range(0, len(good.token), max(1, len(good.token) // 60)):
        forged = good.token[:at] + bytes([good.token[at] ^ 1]) + good.token[at + 1 :]
        try:
            stamped = timestamp.check(forged, data, authority.roots)
        except (FormatError, ProofError):
            continue
        assert stamped == timestamp.check(good.token, data, authority.roots), "what was changed is not the time"


async def test_an_authority_that_answers_nonsense_is_not_believed(authority: Authority, node: Node) -> None:
    tsa = TimestampAuthority(authority.url, authority.roots, 60.0)
    with Tracer().start("checkpoint witness") as span:
        old = (await tsa.anchor(newest(node), span)).token
        await node.live(2)
        try:
            for answer in (b"", b"no stamp", old):
                authority.answer = answer
                with pytest.raises(Failed) as failed:
                    await tsa.anchor(newest(node), span)
                assert failed.value.outcome == "invalid"
        finally:
            authority.answer = None
    away = TimestampAuthority("http://127.0.0.1:9/tsr", authority.roots, 60.0)
    with Tracer().start("checkpoint witness") as span, pytest.raises(Failed) as gone:
        await away.anchor(newest(node), span)
    assert gone.value.outcome == "unreachable"
