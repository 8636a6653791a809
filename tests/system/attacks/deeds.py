"""The catalogue of attacks: who can do it, what is done to a copy of a real node, and what tells an auditor.

A deed's docstring is what the table says of it. Each returns what the auditor's command, or the node, or the witness
then says.
"""

import base64
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal
from unittest.mock import patch

import httpx

from tests.node_process import NodeProcess, receipt_id
from tests.system.attacks.auditor import Said, aimx
from tests.system.attacks.forgery import Key, checkpoint, leaf_hash, request, size_of
from tests.system.attacks.scene import Scene, until
from tests.system.attacks.victim import Leaf, Victim

DOCUMENT = Path(__file__).parents[3] / "docs" / "audit-threat-model.md"

Armed = Literal["root", "root, log key", "root, receipt key", "a witness's key"]
Deed = Callable[[Scene, Victim], Said]


@dataclass(frozen=True)
class Attack:
    """`says`: what an auditor reads, `…` for what differs. `code`: the exit code, or the status of an answer."""

    deed: Deed
    armed: Armed
    told_by: str
    code: int
    says: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.deed.__name__.replace("_", " ")

    @property
    def done(self) -> str:
        return " ".join((self.deed.__doc__ or "").split()).removesuffix(".")

    def missing(self, said: Said) -> list[str]:
        """What should have been said and was not."""
        return [part for part in self.says if not re.search(".*".join(map(re.escape, part.split("…"))), said.text)]


ATTACKS: list[Attack] = []

VERIFY, KEPT = "`aimx audit verify`", "`aimx audit verify --checkpoint KEPT`"
WITNESS, RECEIPT, MAIL = "a witness", "`aimx audit check-receipt`", "`aimx audit check-mail`"
START = "the node's start"


def attack(told_by: str, code: int, *says: str, armed: Armed = "root") -> Callable[[Deed], Deed]:
    def enter(deed: Deed) -> Deed:
        ATTACKS.append(Attack(deed, armed, told_by, code, says))
        return deed

    return enter


# --- the log's rows, without the key ---


@attack(VERIFY, 3, "INCONSISTENT", "leaf-edited: leaf … was changed after it was logged")
def edit_a_row(scene: Scene, victim: Victim) -> Said:
    """An event is changed where the log keeps it."""
    eid, entry = victim.leaves()[20]
    victim.log.run("UPDATE leaf SET entry = ? WHERE eid = ?", _otherwise(entry), eid)
    return _verify(victim)


@attack(VERIFY, 3, "node-differs: leaves … are not those that were hashed into the tree", "root-differs")
def edit_a_row_and_its_hash(scene: Scene, victim: Victim) -> Said:
    """The same, with the row's own hash put right."""
    eid, entry = victim.leaves()[20]
    changed = _otherwise(entry)
    victim.log.run("UPDATE leaf SET entry = ?, hash = ? WHERE eid = ?", changed, leaf_hash(changed), eid)
    return _verify(victim)


@attack(VERIFY, 3, "leaf-missing: there is no leaf 20")
def delete_a_row(scene: Scene, victim: Victim) -> Said:
    """An event is deleted from the log."""
    victim.log.run("DELETE FROM leaf WHERE idx = 20")
    return _verify(victim)


@attack(VERIFY, 3, "node-differs", "event-differs: … and leaf 20 in the log are not the same")
def swap_two_rows(scene: Scene, victim: Victim) -> Said:
    """Two events trade places."""
    with victim.log.reach() as run:
        for old, new in ((20, -1), (21, 20), (-1, 21)):
            run("UPDATE leaf SET idx = ? WHERE idx = ?", new, old)
    return _verify(victim)


@attack(VERIFY, 3, "truncated: … counts … leaves, the log holds")
def cut_the_tail(scene: Scene, victim: Victim) -> Said:
    """The newest events are cut off, tree and root made anew; the signed checkpoints cannot be."""
    victim.rewrite(victim.leaves()[:-30])
    return _verify(victim)


@attack(VERIFY, 3, "checkpoint-contradicted: … was signed for … leaves with root …; they now give")
def rewrite_the_log_without_its_key(scene: Scene, victim: Victim) -> Said:
    """One event is told otherwise in store and log, every hash above it made anew."""
    victim.rewrite(_told_otherwise(scene, victim))
    return _verify(victim)


@attack(VERIFY, 3, "checkpoint-invalid: … is not one this log has signed")
def sign_with_another_key(scene: Scene, victim: Victim) -> Said:
    """The same, and the checkpoints are signed with a key that the forger has made."""
    leaves = _told_otherwise(scene, victim)
    victim.rewrite(leaves, notes=[_signed(victim, leaves, Key(victim.origin, b"\x01", bytes(32)))])
    return _verify(victim)


@attack("`aimx audit verify --vkeys KEPT`", 3, "key-strange: … which was given as its key")
def put_other_keys_in_the_folder(scene: Scene, victim: Victim) -> Said:
    """The same, with the forger's key also in `keys/`, in `audit.vkeys` and in the log's first event."""
    _rekeyed(scene, victim)
    assert _verify(victim).code == 0, "the folder's own keys vouch for themselves"
    return _verify(victim, "--vkeys", str(scene.vkeys))


@attack(VERIFY, 3, "checkpoint-invalid", armed="root, receipt key")
def sign_a_checkpoint_with_the_receipt_key(scene: Scene, victim: Victim) -> Said:
    """The receipt key, which every worker holds, is made to speak for the log."""
    leaves = _told_otherwise(scene, victim)
    victim.rewrite(leaves, notes=[_signed(victim, leaves, victim.key("receipt"))])
    return _verify(victim)


# --- everything at once, with the key ---


@attack(KEPT, 3, "checkpoint-contradicted: remembered checkpoint 1 was signed for", armed="root, log key")
def rewrite_everything(scene: Scene, victim: Victim) -> Said:
    """Store, log, tree, checkpoints and every memory on the machine are made anew and signed."""
    _rewritten(scene, victim)
    alone = _verify(victim)
    assert (alone.code, "NOT ANCHORED" in alone.text) == (0, True), alone.text
    return _verify(victim, "--checkpoint", str(scene.kept))


@attack("`aimx audit verify --require anchored`", 5, "nobody outside has confirmed the log", armed="root, log key")
def take_the_witnesses_words_away(scene: Scene, victim: Victim) -> Said:
    """The same, before an auditor who kept nothing, but knows that the log is witnessed."""
    _rewritten(scene, victim)
    return _verify(victim, "--require", "anchored")


@attack(VERIFY, 3, "checkpoint-contradicted: the checkpoint of … leaves anchored with peer", armed="root, log key")
def leave_the_witnesses_words(scene: Scene, victim: Victim) -> Said:
    """The same, but what the witness had said is left where it was."""
    leaves = _told_otherwise(scene, victim)
    victim.rewrite(leaves, notes=[_signed(victim, leaves)])
    return _verify(victim)


@attack(WITNESS, 422, "", armed="root, log key")
def show_the_rewritten_log_to_the_witness(scene: Scene, victim: Victim) -> Said:
    """The same, and a witness that cosigned the old history is asked to cosign the new one."""
    leaves = [*_told_otherwise(scene, victim), ("0" * 26, b"{}")]
    return _asked(scene, victim, leaves, old=_witnessed(scene))


@attack(
    "the node that goes on from it, by its witness",
    0,
    "witness peer says that the log is not the one it has cosigned before",
    armed="root, log key",
)
def go_on_from_the_rewritten_log(scene: Scene, victim: Victim) -> Said:
    """The same, and the node is started again on it."""
    _rewritten(scene, victim)
    with _running(victim) as node:
        _mail_flows(scene, node)
        return _logged(node, "not the one it has cosigned")


@attack(MAIL, 3, "ALTERED", "are not those it has signed for", armed="root, log key")
def rewrite_what_was_mailed(scene: Scene, victim: Victim) -> Said:
    """The same; somebody elsewhere has the checkpoints that were mailed to him."""
    _rewritten(scene, victim)
    return aimx(victim.data, "audit", "check-mail", str(scene.mbox))


@attack("`aimx audit export`", 1, "the log was altered: …checkpoint is signed for", armed="root, log key")
def rewrite_what_was_exported(scene: Scene, victim: Victim) -> Said:
    """The same; somebody has an export and asks for a newer one into the same folder."""
    _rewritten(scene, victim)
    shutil.copytree(scene.export, victim.folder / "export")
    return aimx(victim.data, "audit", "export", str(victim.folder / "export"))


@attack(RECEIPT, 6, "VALID, SUPPRESSED", "keep the mail, the receipt and this checkpoint", armed="root, log key")
def rewrite_what_was_promised(scene: Scene, victim: Victim) -> Said:
    """The same; the sender of the message has its receipt."""
    _rewritten(scene, victim)
    return _minutes_later(lambda: scene.check_receipt(victim, "--vkeys", str(scene.vkeys)))


@attack(KEPT, 3, "truncated: remembered checkpoint 1 counts … leaves, the log holds", armed="root, log key")
def cut_the_tail_everywhere(scene: Scene, victim: Victim) -> Said:
    """The newest events and their messages are gone from store, log and every memory on the machine."""
    leaves = victim.forget_after(size_of(scene.kept.read_text()) - 10)
    victim.rewrite(leaves, notes=[_signed(victim, leaves)])
    victim.forget_outsiders()
    alone = _verify(victim)
    assert (alone.code, "NOT ANCHORED" in alone.text) == (0, True), alone.text
    return _verify(victim, "--checkpoint", str(scene.kept))


@attack(WITNESS, 409, "", armed="root, log key")
def show_the_shorter_log_to_the_witness(scene: Scene, victim: Victim) -> Said:
    """The same, and the witness is asked to cosign it. It answers with the size that it has seen."""
    return _asked(scene, victim, victim.leaves()[:40], old=30)


@attack(VERIFY, 3, "backdated: leaf … says …, and stands after a cosignature of", armed="root, log key")
def backdate(scene: Scene, victim: Victim) -> Said:
    """The newest event is given a time an hour earlier, and all is signed anew."""
    eid, entry = victim.leaves()[-1]
    t_ms = json.loads(entry)["t"]
    leaves = victim.change_event(eid, b'"t":%d' % t_ms, b'"t":%d' % (t_ms - 3_600_000))
    victim.mail.run("UPDATE event SET t_ms = ? WHERE eid = ?", t_ms - 3_600_000, eid)
    victim.rewrite(leaves, notes=[_signed(victim, leaves)])
    return _verify(victim)


# --- two logs ---


@attack(MAIL, 3, "FORKED", "has signed two histories of … leaves", armed="root, log key")
def show_two_readers_two_logs(scene: Scene, victim: Victim) -> Said:
    """Two mailboxes are sent different checkpoints of one size; their owners compare."""
    sizes = re.findall(rf"{re.escape(victim.origin)}\n(\d+)\n", _texts(scene.mbox))
    forked = [leaf_hash(entry) for _, entry in _told_otherwise(scene, victim)][: int(sizes[-1])]
    other = base64.encodebytes(checkpoint(victim.origin, forked, victim.key()).encode()).decode()
    both = victim.folder / "mbox"
    second = f"From other\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n\n{other}\n"
    both.write_bytes(scene.mbox.read_bytes() + second.encode())
    return aimx(victim.data, "audit", "check-mail", str(both), "--alone", "--vkeys", str(scene.vkeys))


# --- old copies ---


@attack(START, 1, "an old copy was put in its place", "restore-fork")
def restore_an_old_log(scene: Scene, victim: Victim) -> Said:
    """The log alone is put back as it was, from a backup."""
    victim = _restored(scene, victim, whole=False)
    return _refused(victim)


@attack(KEPT, 3, "truncated: remembered checkpoint 1 counts")
def restore_everything(scene: Scene, victim: Victim) -> Said:
    """Folder and database are put back as they were, with all that the node itself could remember by."""
    return _verify(_restored(scene, victim, whole=True), "--checkpoint", str(scene.kept))


@attack("the node that goes on from it, by its witness", 0, "a witness has cosigned … leaves of this log, which holds")
def go_on_from_the_restored_copy(scene: Scene, victim: Victim) -> Said:
    """The same, and the node is started again on it."""
    with _running(_restored(scene, victim, whole=True)) as node:
        return _logged(node, "was an old copy restored")


# --- the store beside the log ---


@attack(VERIFY, 4, "UNRECONCILED", "message-unlogged: message … is kept and was never logged as accepted")
def drop_an_event_before_it_is_logged(scene: Scene, victim: Victim) -> Said:
    """A trigger in the message database takes each acceptance out before the sequencer has seen it."""
    _unlogged(scene, victim)
    return _verify(victim)


@attack(RECEIPT, 6, "VALID, SUPPRESSED", "not among its … leaves, by its signed checkpoint")
def drop_a_message_and_all_that_was_said_of_it(scene: Scene, victim: Victim) -> Said:
    """The same, and the message is taken out of the store too. Its sender has the receipt."""
    receipt, mail = _unlogged(scene, victim)
    victim.forget_message(receipt_id(receipt))
    alone = _verify(victim)
    assert alone.text.startswith("CONSISTENT, COMPLETE"), f"nothing on the machine tells\n{alone.text}"
    command = ("audit", "check-receipt", receipt, str(mail), "--vkeys", str(scene.vkeys))
    return _minutes_later(lambda: aimx(victim.data, *command))


@attack(VERIFY, 4, "opening-missing: … cannot be opened any more and no message.erased says why")
def erase_silently(scene: Scene, victim: Victim) -> Said:
    """A message's content, keys and openings are destroyed by SQL."""
    victim.mail.run("UPDATE event SET key = NULL, detail = '{}' WHERE ref = ?", scene.eid)
    victim.mail.run(f"UPDATE content SET header = ?, data = ? WHERE message = {_ID}", b"", b"", scene.eid)
    return _verify(victim)


@attack(VERIFY, 4, "message-missing: message … was accepted and is gone; no message.erased says so")
def delete_a_message(scene: Scene, victim: Victim) -> Said:
    """A message is deleted from the store."""
    victim.forget_message(scene.eid)
    return _verify(victim)


@attack(VERIFY, 4, "message-differs: the body of message … is not as it was accepted")
def edit_a_mail(scene: Scene, victim: Victim) -> Said:
    """The text of a stored message is changed."""
    victim.mail.run(f"UPDATE content SET data = ? WHERE message = {_ID}", b"Pay 900.\r\n", scene.eid)
    return _verify(victim)


@attack(VERIFY, 4, "opening-differs: message.accepted …: its from differs from what the leaf commits to")
def tell_the_timeline_otherwise(scene: Scene, victim: Victim) -> Said:
    """Another sender is written into what opens an acceptance."""
    ((detail,),) = victim.mail.run("SELECT detail FROM event WHERE eid = ?", scene.eid)
    other = json.loads(detail)
    other["open"]["from"] = "eve@elsewhere.example"
    victim.mail.run("UPDATE event SET detail = ? WHERE eid = ?", json.dumps(other), scene.eid)
    return _verify(victim)


@attack(VERIFY, 4, "leaf-unexplained: leaf … has no event in the store")
def delete_an_event(scene: Scene, victim: Victim) -> Said:
    """An event is deleted from the store, and stays in the log."""
    eid = next(eid for eid, entry in reversed(victim.leaves()) if b'"ev":"delivery.mailbox"' in entry)
    victim.mail.run("DELETE FROM event WHERE eid = ?", eid)
    return _verify(victim)


@attack(VERIFY, 3, "shard-missing: the shard … is not there and no log.dropped says so")
def drop_a_shard(scene: Scene, victim: Victim) -> Said:
    """The oldest shard is deleted whole, as if its retention were over."""
    _divided(victim)
    assert _verify(victim).code == 0
    if victim.url is None:
        for file in victim.data.glob("audit.db*"):
            file.unlink()
    else:
        with victim.log.reach() as run:
            for table in ("leaf", "node", "checkpoint", "state"):
                run(f"DELETE FROM {table} WHERE shard = 1")
    return _verify(victim)


# --- witnesses that lie ---


@attack("`aimx audit verify --policy TWO --require witnessed`", 5, "1 of 2 witnesses", armed="a witness's key")
def bribe_one_witness(scene: Scene, victim: Victim) -> Said:
    """Everything is rewritten with the log's key, and one of two witnesses cosigns it."""
    bribed = Key("bribed.example/witness", b"\x04", b"\x05" * 32)
    leaves = _told_otherwise(scene, victim)
    signed = _signed(victim, leaves)
    victim.rewrite(leaves, notes=[signed])
    victim.forget_outsiders()
    now_ms = time.time_ns() // 1_000_000
    cosigned = signed + bribed.cosignature(signed.partition("\n\n")[0] + "\n", now_ms // 1000)
    columns = (
        "INSERT INTO anchor (kind, name, origin, size, t_ms, note, token) VALUES ('witness', 'bribed', ?, ?, ?, ?, ?)"
    )
    victim.anchors.run(columns, victim.origin, size_of(signed), now_ms, cosigned, b"")
    honest = (scene.witness.data / "witness.vkey").read_text().strip()
    policy = victim.folder / "policy"
    policy.write_text(
        f"log {victim.key().vkey}\nwitness bribed {bribed.vkey}\nwitness honest {honest}\n"
        "group both all bribed honest\nquorum both\n"
    )
    return _verify(victim, "--policy", str(policy), "--require", "witnessed")


@attack("the node, in its log", 0, "the answer of liar.example/witness does not hold", armed="a witness's key")
def answer_with_a_signature_of_something_else(scene: Scene, victim: Victim) -> Said:
    """A witness answers with a cosignature of another text. It is kept nowhere, and the mail goes on."""
    liar = Key("liar.example/witness", b"\x04", b"\x06" * 32)
    with _lying(200, liar.cosignature("another log\n1\nAAAA\n", int(time.time()))) as url:
        return _beside(scene, victim, liar, url, "does not hold")


@attack("the node, in its log", 0, "a witness has cosigned 999999 leaves of this log", armed="a witness's key")
def claim_to_have_seen_more(scene: Scene, victim: Victim) -> Said:
    """A witness says that it knows a longer log. Its word alone stops nothing and changes no verdict."""
    liar = Key("liar.example/witness", b"\x04", b"\x06" * 32)
    with _lying(409, "999999\n") as url:
        return _beside(scene, victim, liar, url, "999999")


# --- what was handed out ---


@attack("`aimx audit verify --bundle`", 3, "INCONSISTENT", "leaf-edited")
def tamper_with_an_export(scene: Scene, victim: Victim) -> Said:
    """An event is changed in an exported folder."""
    shutil.copytree(scene.export, victim.folder / "export")
    path = next(path for path in (victim.folder / "export").glob("*/tile/entries/**/*") if path.is_file())
    path.write_bytes(_otherwise(path.read_bytes()))
    return aimx(victim.data, "audit", "verify", "--bundle", str(victim.folder / "export"))


@attack("`aimx audit verify --bundle --vkeys KEPT`", 3, "key-strange")
def hand_out_an_export_of_another_log(scene: Scene, victim: Victim) -> Said:
    """An export is made of a log that was rewritten and signed with the forger's own key."""
    _rekeyed(scene, victim)
    out = str(victim.folder / "export")
    assert aimx(victim.data, "audit", "export", out).code == 0
    assert aimx(victim.data, "audit", "verify", "--bundle", out).code == 0, "its own keys vouch for it"
    return aimx(victim.data, "audit", "verify", "--bundle", out, "--vkeys", str(scene.vkeys))


@attack(RECEIPT, 3, "INVALID", "the signature is not about this message, this sender and these recipients")
def show_a_receipt_of_another_mail(scene: Scene, victim: Victim) -> Said:
    """A true receipt is shown with a mail that was never sent."""
    other = victim.folder / "other.eml"
    other.write_bytes(scene.mail.replace(b"500", b"900"))
    return aimx(victim.data, "audit", "check-receipt", scene.receipt, str(other), "--vkeys", str(scene.vkeys))


# --- what the deeds share ---

_ID = "(SELECT id FROM message WHERE eid = ?)"


def _verify(victim: Victim, *options: str) -> Said:
    return aimx(victim.data, "audit", "verify", *options)


def _otherwise(entry: bytes) -> bytes:
    """Another time of the same length."""
    at = entry.index(b'"t":') + 8
    return entry[:at] + bytes([entry[at] ^ 1]) + entry[at + 1 :]


def _told_otherwise(scene: Scene, victim: Victim) -> list[Leaf]:
    """The message of the scene gets another size, in the store. Returns the leaves that fit."""
    size = next(json.loads(entry)["size"] for eid, entry in victim.leaves() if eid == scene.eid)
    return victim.change_event(scene.eid, b'"size":%d' % size, b'"size":%d' % (size + 1))


def _signed(victim: Victim, leaves: Sequence[Leaf], key: Key | None = None) -> str:
    return checkpoint(victim.origin, [leaf_hash(entry) for _, entry in leaves], key or victim.key())


def _rewritten(scene: Scene, victim: Victim) -> None:
    leaves = _told_otherwise(scene, victim)
    victim.rewrite(leaves, notes=[_signed(victim, leaves)])
    victim.forget_outsiders()


def _rekeyed(scene: Scene, victim: Victim) -> None:
    old, new = victim.key(), Key(victim.origin, b"\x01", b"\x09" * 32)
    _told_otherwise(scene, victim)
    opened = victim.leaves()[0][0]
    changed = dict(victim.change_event(opened, old.vkey.encode(), new.vkey.encode()))
    told = {bytes(eid, "ascii").decode(): bytes(leaf) for eid, leaf in victim.mail.run("SELECT eid, leaf FROM event")}
    leaves = [(eid, told.get(eid, entry)) for eid, entry in changed.items()]
    victim.rewrite(leaves, notes=[_signed(victim, leaves, new)])
    victim.forget_outsiders()
    (victim.data / "keys" / "log.key").write_text(new.skey + "\n")
    vkeys = victim.data / "audit.vkeys"
    vkeys.write_text(vkeys.read_text().replace(old.vkey, new.vkey))


def _witnessed(scene: Scene) -> int:
    """What the witness of the scene has cosigned last, asked as anybody may."""
    found = Victim(scene.witness.folder).anchors.look(
        f"SELECT size FROM witnessed WHERE origin LIKE '{scene.kind}.example/%'"
    )
    return int(found[0][0])


def _asked(scene: Scene, victim: Victim, leaves: Sequence[Leaf], *, old: int) -> Said:
    """Ask the witness to cosign these leaves, as the log of the scene."""
    body = request(old, [leaf_hash(entry) for _, entry in leaves], _signed(victim, leaves))
    with httpx.Client(verify=scene.witness.tls(), base_url=scene.witness.ready["http"]) as client:
        answer = client.post("/add-checkpoint", content=body)
    return Said(answer.status_code, answer.text)


def _minutes_later(check: Callable[[], Said]) -> Said:
    now = time.time
    with patch("time.time", lambda: now() + 120):
        return check()


def _texts(mbox: Path) -> str:
    parts = re.findall(rb"\n\n([A-Za-z0-9+/=\n]{80,})\n", mbox.read_bytes())
    return "".join(base64.b64decode(part).decode("utf-8", "replace") for part in parts)


def _restored(scene: Scene, victim: Victim, *, whole: bool) -> Victim:
    old = scene.copy(scene.backup, victim.folder / "old")
    if whole:
        shutil.copy(victim.folder / "aimx.toml", old.folder)
        toml = old.folder / "aimx.toml"
        toml.write_text(toml.read_text().replace(str(victim.url), str(old.url)))
        return old
    if old.url is not None:
        newest, ((signed,),) = victim.signed, old.log.look("SELECT signed FROM state")
        victim.rewrite(old.leaves(), notes=[signed])
        (victim.data / "audit.checkpoint").write_text(newest)
        return victim
    shutil.copy(old.data / "audit.db", victim.data)
    return victim


@contextmanager
def _running(victim: Victim) -> Iterator[NodeProcess]:
    node = NodeProcess(victim.folder, config=(victim.folder / "aimx.toml").read_text())
    node.log.unlink(missing_ok=True)
    with node:
        yield node


def _refused(victim: Victim) -> Said:
    try:
        with _running(victim):
            return Said(0, "it started")
    except AssertionError as error:
        return Said(1, str(error))


def _logged(node: NodeProcess, text: str) -> Said:
    until(lambda: text in node.log.read_text(), text)
    return Said(0, node.log.read_text())


def _mail_flows(scene: Scene, node: NodeProcess) -> str:
    with node.smtp(scene.ann) as client:
        client.mail(scene.ann.address)
        client.rcpt(scene.ann.address)
        code, said = client.data(scene.mail)
    assert code == 250
    return said.decode()


def _unlogged(scene: Scene, victim: Victim) -> tuple[str, Path]:
    """The receipt and the mail of a message whose events never reach the log."""
    evs, who = "('message.accepted', 'delivery.mailbox')", f"new.agent = '{scene.ann.address}'"
    with victim.mail.reach() as run:
        if victim.url is None:
            when = f"AFTER INSERT ON event WHEN new.ev IN {evs} AND {who}"
            run(f"CREATE TRIGGER quiet {when} BEGIN DELETE FROM event WHERE seq = new.seq; END")
        else:
            for table, when in (
                ("event", f"new.ev IN {evs} AND {who}"),
                ("outbox", "NOT EXISTS (SELECT FROM aimx.event e WHERE e.seq = new.seq)"),
            ):
                body = f"BEGIN IF {when} THEN RETURN NULL; END IF; RETURN new; END"
                run(f"CREATE FUNCTION quiet_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
                run(f"CREATE TRIGGER quiet BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION quiet_{table}()")
    mail = victim.folder / "unlogged.eml"
    mail.write_bytes(scene.mail)
    with _running(victim) as node:
        receipt = _mail_flows(scene, node)
    return receipt, mail


def _divided(victim: Victim) -> None:
    """Have the log go on in a second shard."""
    toml = victim.folder / "aimx.toml"
    toml.write_text(toml.read_text().replace("[audit]\n", '[audit]\nshard = "1mo"\n'))
    with _running(victim) as node:
        until(lambda: '"audit.shard"' in node.log.read_text() or "new shard" in node.log.read_text(), "a second shard")


@contextmanager
def _lying(status: int, text: str) -> Iterator[str]:
    """A witness that answers each request so."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Nobody asked."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _beside(scene: Scene, victim: Victim, liar: Key, url: str, text: str) -> Said:
    """A node that asks the liar too: what it says of it, when mail was taken and the log found to be in order."""
    toml = victim.folder / "aimx.toml"
    toml.write_text(toml.read_text() + f'[audit.witness.liar]\nurl = "{url}"\nvkey = "{liar.vkey}"\n')
    with _running(victim) as node:
        _mail_flows(scene, node)
        said = _logged(node, text)
        found = _verify(victim)
        assert (found.code, "WITNESSED 1/2" in found.text) == (0, True), found.text
    return said


# --- the document ---

_START, _END = "<!-- attacks -->\n", "<!-- end -->\n"


def filled(document: str) -> str:
    """The document with the table that these attacks make."""
    before, _, rest = document.partition(_START)
    return before + _START + table() + _END + rest.partition(_END)[2]


def table() -> str:
    rows = ["| attack | armed with | what is done | told by | and in which words |", "|---|---|---|---|---|"]
    for one in ATTACKS:
        words = "; ".join(f"`{part}`" for part in one.says if part)
        code = f"{one.code}" if one.code >= 100 else f"exit {one.code}"
        rows.append(f"| {one.name} | {one.armed} | {one.done} | {one.told_by} | {_result(one, code)}{words} |")
    return "\n".join(rows) + "\n"


def _result(one: Attack, code: str) -> str:
    if one.code == 0:
        return ""
    return f"{code}: " if any(one.says) else code
