"""The verifier page does what its Python counterpart does: in headless Chromium, from a node and from a saved copy, and
its core under Node.js on many tampered proofs."""

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from aimx.audit.events import message_accepted
from aimx.audit.evidence import Evidence, check
from aimx.sidecar.verifier import page, policy
from aimx.tlog import checkpoint, note, proof, tree
from aimx.tlog.note import Signer
from aimx.tlog.tree import leaf_hash
from tests.interop.browser import browser
from tests.interop.programs import need
from tests.node_process import NodeProcess, receipt_id
from tests.unit.test_audit_events import KEY, M1, STAMP

Given = dict[str, Any]


@dataclass
class Proved:
    evidence: dict[str, Any]
    keys: str
    mail: bytes
    node: NodeProcess


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proved]:
    """A message on a real node, and what its operator gives an auditor."""
    need("chromium")
    with NodeProcess(tmp_path_factory.mktemp("verifier")) as node:
        ann = node.add_agent("ann")
        with node.smtp(ann) as client:
            client.mail(ann.address)
            client.rcpt(ann.address)
            _, said = client.data(f"From: {ann.address}\r\nTo: {ann.address}\r\nSubject: é\r\n\r\nhello\r\n".encode())
        eid = receipt_id(said)
        evidence = json.loads(node.aimx("audit", "prove", eid, "--json").stdout)
        headers = {"Authorization": "Bearer " + Path(node.ready["admin_token_file"]).read_text().strip()}
        mail = httpx.get(f"{node.ready['http']}/v1/messages/{eid}/raw", headers=headers, verify=node.tls()).content
        yield Proved(evidence, (node.data / "audit.vkeys").read_text(), mail, node)


def verdict(window: Any, evidence: object, keys: str, mail: Path | None = None) -> tuple[str, str]:
    """What the page says to one proof, as a person gets it."""
    window.fill("proof", evidence if isinstance(evidence, str) else json.dumps(evidence))
    window.fill("keys", keys)
    if mail is not None:
        window.choose("mail", mail)
    window.run("document.getElementById('verdict').textContent = ''")
    window.click("button")
    word = window.wait(
        "const done = arguments[0], at = document.getElementById('verdict');"
        "const look = () => at.textContent ? done(at.textContent) : setTimeout(look, 10); look();"
    )
    return word, window.run("return document.getElementById('steps').innerText")


@pytest.mark.parametrize("saved", [False, True], ids=["served", "saved copy"])
def test_in_a_browser_a_good_proof_is_accepted_and_a_tampered_one_refused(
    proved: Proved, tmp_path: Path, saved: bool
) -> None:
    evidence, url = proved.evidence, f"{proved.node.ready['http']}/verify"
    if saved:
        copy = tmp_path / "verify.html"
        copy.write_bytes(httpx.get(url, verify=proved.node.tls()).content)
        url = copy.as_uri()
    mail, forged = tmp_path / "mail.eml", tmp_path / "forged.eml"
    mail.write_bytes(proved.mail)
    forged.write_bytes(proved.mail.replace(b"hello", b"hullo"))
    with browser(tmp_path / "profile") as window:
        window.open(url)
        word, steps = verdict(window, evidence, proved.keys, mail)
        assert (word, "octet for octet" in steps) == ("ACCEPTED", True), steps
        assert "from: ann@fabric.local" in steps
        assert verdict(window, evidence, proved.keys, forged)[0] == "REFUSED"
        wrong = {**evidence, "leaf": evidence["leaf"].replace('"auth":"agent"', '"auth":"admin"')}
        assert verdict(window, wrong, proved.keys, mail) == (
            "REFUSED",
            "the leaf and its path do not lead to the checkpoint's root",
        )
        assert verdict(window, evidence, "", mail)[0] == "REFUSED"
        # The page's policy holds: it cannot talk to anybody, not even to where it came from.
        if not saved:
            sent = window.wait("fetch('/healthz').then(() => arguments[0]('sent'), () => arguments[0]('kept'))")
            assert sent == "kept"


def test_it_asks_for_nothing_from_elsewhere() -> None:
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest", page())
    assert "unsafe" not in policy()
    assert "connect-src" not in policy()  # default-src 'none' is for all that is not named
    assert policy().startswith("default-src 'none';")


# ── the core, under Node.js ──────────────────────────────────────────────────────────────────────────────────────────

LOG = Signer("x.example/audit/2026h2", b"\1" * 32)
WITNESS = Signer("witness.example/w", b"\2" * 32, note.COSIGNATURE_V1)
VKEYS = f"{LOG.verifier.vkey()}\n# the witness\n{WITNESS.verifier.vkey()}\n"
MAIL = (b"Subject: x\r\n\r\n", b"hello\r\n")
RUN = (
    "const all = JSON.parse(require('fs').readFileSync(0)), out = [];"
    "(async () => { for (const one of all) { if (one.mail) one.mail = new Uint8Array(Buffer.from(one.mail, 'base64'));"
    " out.push(await globalThis.aimx.check(one)); } console.log(JSON.stringify(out)); })();"
)


def checked(given: list[Given]) -> list[dict[str, Any]]:
    script = re.search(r"<script>(.*?)</script>", page(), re.DOTALL)
    assert script is not None
    done = subprocess.run(
        [need("node"), "-e", script[1] + RUN], input=json.dumps(given), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def evidence_in(index: int, size: int, recipients: int = 2) -> Given:
    """An acceptance as leaf `index` of `size`, its proof cosigned."""
    digests = {
        "data": sha256(b"".join(MAIL)).digest(),
        **{k: sha256(v).digest() for k, v in zip(PARTS, MAIL, strict=True)},
    }
    to = [f"bob{number}@x.example" for number in range(recipients)]
    row = message_accepted(STAMP, eid=M1, key=KEY, **digests, sender="ann@x.example", recipients=to, size=9)
    hashes = [leaf_hash(b"%d" % at) for at in range(size)]
    hashes[index] = leaf_hash(row.leaf)

    def read(level: int, at: int) -> bytes:
        if level == 0:
            return hashes[at]
        return tree.node_hash(read(level - 1, 2 * at), read(level - 1, 2 * at + 1))

    found = checkpoint.Checkpoint(LOG.verifier.name, size, tree.root_at(size, read))
    log, witness = LOG.sign(found.text().encode()), WITNESS.sign(found.text().encode(), 1_780_000_000)
    signed = str(note.Note(found.text(), (log, witness)))
    text = proof.Proof(index, tuple(tree.inclusion_proof(index, size, read)), signed).text()
    proved = Evidence(M1, row.ev, index, row.leaf, text, KEY, *STAMP.span, row.detail["open"])
    check(proved, LOG.verifier)
    return {
        "proof": json.dumps(proved.to_json()),
        "leaf": "",
        "keys": VKEYS,
        "mail": base64.b64encode(b"".join(MAIL)).decode(),
    }


PARTS = ("header", "body")


def test_every_place_in_every_small_tree_is_accepted() -> None:
    given = [evidence_in(index, size) for size in range(1, 18) for index in range(size)]
    given += [evidence_in(3, 600, 257), evidence_in(599, 600, 256)]
    answers = checked(given)
    assert [answer for answer in answers if answer["verdict"] != "ACCEPTED"] == []
    said = [text for _, text in answers[0]["steps"]]
    assert "cosigned by witness.example/w at 2026-05-28T20:26:40.000Z" in said


def test_a_bare_proof_is_accepted_with_its_leaf_only() -> None:
    found = json.loads(evidence_in(2, 7)["proof"])
    bare = {"proof": found["proof"], "leaf": found["leaf"], "keys": VKEYS}
    answers = checked([bare, {**bare, "leaf": ""}, {**bare, "leaf": found["leaf"] + " "}])
    assert [answer["verdict"] for answer in answers] == ["ACCEPTED", "REFUSED", "REFUSED"]


def tampered() -> Iterator[tuple[str, Given]]:
    given = evidence_in(5, 11)
    good = json.loads(given["proof"])

    def with_(**changed: object) -> Given:
        return {**given, "proof": json.dumps({**good, **changed})}

    text = good["proof"]
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1]):
        if not line or WITNESS.verifier.name in line:
            continue
        for at in {0, len(line) // 2, len(line) - 1}:
            other = "B" if line[at] == "A" else "A"
            changed = [*lines[:number], line[:at] + other + line[at + 1 :], *lines[number + 1 :]]
            yield f"line {number} at {at}", with_(proof="\n".join(changed))
        yield f"line {number} gone", with_(proof="\n".join([*lines[:number], *lines[number + 1 :]]))
    yield "no signature line", with_(proof=text.replace("\u2014", "-"))
    yield "a longer path", with_(proof=text.replace("\n\n", "\n" + lines[2] + "\n\n", 1))
    yield "another event", with_(eid="01JZ0000000000000000000009")
    yield "another index", with_(index=4)
    for part, value in {
        "from": "eve@x.example",
        "rcpt": ["bob0@x.example"],
        "hdr": "00" * 32,
        "trace": "00" * 16,
    }.items():
        yield f"another {part}", with_(opening={**good["opening"], part: value})
    yield "a part that is none", with_(opening={**good["opening"], "subject": "x"})
    yield "another key", with_(opening={**good["opening"], "key": "00" * 32})
    yield "mail without opening", with_(opening=None)
    yield "no keys", {**given, "keys": ""}
    yield "a stranger's key", {**given, "keys": Signer(LOG.verifier.name, b"\3" * 32).verifier.vkey()}
    yield "the witness's key alone", {**given, "keys": WITNESS.verifier.vkey()}
    yield "a key with another id", {**given, "keys": VKEYS.replace(LOG.verifier.key_id.hex(), "00000000")}
    yield "another mail", {**given, "mail": base64.b64encode(MAIL[0] + b"hullo\r\n").decode()}
    yield "another header", {**given, "mail": base64.b64encode(b"Subject: y\r\n\r\n" + MAIL[1]).decode()}
    yield "no proof", {**given, "proof": ""}
    yield "broken JSON", {**given, "proof": given["proof"][:-1]}


def test_whatever_is_tampered_with_is_refused() -> None:
    cases = list(tampered())
    answers = checked([given for _, given in cases])
    assert [name for (name, _), it in zip(cases, answers, strict=True) if it["verdict"] != "REFUSED"] == []
    assert len(cases) > 40


def test_a_witness_s_line_counts_only_if_it_holds() -> None:
    given = evidence_in(5, 11)
    good = json.loads(given["proof"])
    *rest, line = good["proof"].rstrip("\n").split("\n")
    without = {**given, "proof": json.dumps({**good, "proof": "\n".join([*rest, ""])})}
    other = "B" if line[-10] == "A" else "A"
    forged = {**given, "proof": json.dumps({**good, "proof": "\n".join([*rest, line[:-10] + other + line[-9:], ""])})}
    unknown, bad = checked([without, forged])
    assert unknown["verdict"] == "ACCEPTED"
    assert any("no witness" in text for _, text in unknown["steps"])
    assert bad["verdict"] == "REFUSED"
