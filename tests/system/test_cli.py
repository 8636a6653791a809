"""The `aimx` command as a person and a script use it, beside a running node."""

import base64
import json
import os
import shlex
import smtplib
import stat
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, struct_pb2

from tests.node_process import AIMX, Account, NodeProcess, clean_environ
from tests.otlp_receiver import wait_until

NewAgent = Callable[..., Account]


def as_json(node: NodeProcess, *arguments: str, **options: Any) -> Any:
    return json.loads(node.aimx(*arguments, "--json", **options).stdout)


def refused(node: NodeProcess, *arguments: str, code: int = 1, **options: Any) -> str:
    """A command that must fail: nothing on stdout, on stderr one line, which is returned."""
    done = node.aimx(*arguments, check=False, **options)
    assert done.returncode == code, done.stdout + done.stderr
    assert not done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[-1]


def sends(node: NodeProcess, account: Account, to: str, payload: str, *options: str) -> dict[str, str]:
    found: dict[str, str] = as_json(node, "send", to, payload, *options, environ={"AIMX_URL": account.url})
    return found


def test_an_agents_life(node: NodeProcess) -> None:
    made = as_json(node, "agent", "add", "Anna", "--max-unacked", "3", "--quota", "100000")
    assert set(made) == {"address", "password", "url"}
    assert made["address"] == "anna@fabric.local"
    assert refused(node, "agent", "add", "anna").startswith("aimx: ")
    account = Account(made["address"], made["password"], made["url"])
    sends(node, account, "anna", '"first"')

    new = as_json(node, "agent", "password", "anna")
    assert "may not sign in" in refused(node, "send", "anna", "x", environ={"AIMX_URL": made["url"]})
    account = Account(new["address"], new["password"], new["url"])
    sends(node, account, "anna", '"second"')

    assert as_json(node, "agent", "disable", "anna")["disabled"] is True
    assert "may not sign in" in refused(node, "send", "anna", "x", environ={"AIMX_URL": account.url})
    assert as_json(node, "agent", "enable", "anna")["disabled"] is False

    limits = as_json(node, "agent", "set", "anna", "--max-unacked", "none", "--may-prioritise")
    assert (limits["max_unacked"], limits["quota"], limits["may_prioritise"]) == (None, 100000, True)
    listed = {one["address"]: one for one in as_json(node, "agent", "list")}
    assert listed["anna@fabric.local"]["used"] > 0
    assert "anna@fabric.local" in node.aimx("agent", "list").stdout

    assert as_json(node, "agent", "remove", "anna", "--yes") == {"address": "anna@fabric.local", "removed": True}
    assert "anna@fabric.local" not in {one["address"] for one in as_json(node, "agent", "list")}
    assert "there is no agent anna@fabric.local" in refused(node, "agent", "password", "anna")


@pytest.mark.parametrize("name", ["", "a b", "a@elsewhere.example", "../x", "mailer-daemon", "x" * 65])
def test_names_no_agent_may_have(node: NodeProcess, name: str) -> None:
    assert refused(node, "agent", "add", name).startswith("aimx: ")


def test_send_and_inbox(node: NodeProcess, new_agent: NewAgent) -> None:
    one, two = new_agent("one"), new_agent("two")
    sent = sends(node, one, two.name, '{"hello": "world"}', "--workflow", "w-cli", "--subject", "Hi")
    shown = node.aimx("inbox", "--json", "--wait", "10", environ={"AIMX_URL": two.url}).stdout.splitlines()
    assert [json.loads(line) for line in shown] == [
        {
            "id": sent["id"],
            "message_id": sent["message_id"],
            "from": one.address,
            "subject": "Hi",
            "workflow": "w-cli",
            "trace_id": sent["trace_id"],
            "content_type": "application/json",
            "payload": {"hello": "world"},
        }
    ]
    out = node.aimx("inbox", "--ack", "--wait", "10", environ={"AIMX_URL": two.url}).stdout
    assert one.address in out
    assert '"hello": "world"' in out
    assert node.aimx("inbox", "--json", environ={"AIMX_URL": two.url}).stdout == ""


def test_send_reads_standard_input_and_any_text(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent()
    node.aimx("send", account.name, input="not JSON: at all", environ={"AIMX_URL": account.url})
    shown = node.aimx("inbox", "--json", "--wait", "10", environ={"AIMX_URL": account.url}).stdout
    assert json.loads(shown)["payload"] == "not JSON: at all"


def test_octets_are_sent_as_they_are(node: NodeProcess, new_agent: NewAgent, tmp_path: Path) -> None:
    account, octets = new_agent(), bytes(range(256))
    (tmp_path / "octets").write_bytes(octets)
    for options in ("", "--type image/png"):
        command = f"{' '.join(map(shlex.quote, AIMX))} send {account.name} - {options} < {tmp_path / 'octets'}"
        subprocess.run(command, shell=True, check=True, env=clean_environ({"AIMX_URL": account.url}))
    shown = node.aimx("inbox", "--json", environ={"AIMX_URL": account.url}).stdout.splitlines()
    found = [json.loads(line) for line in shown]
    assert [one["content_type"] for one in found] == ["application/octet-stream", "image/png"]
    assert {base64.b64decode(one["payload"]) for one in found} == {octets}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bad addr", "x"], "'bad addr' is no address"),
        ([",", "x"], "needs a recipient"),
        (["{}", "x", "--subject", "one\ntwo"], "line break"),
        (["{}", "x", "--type", "foo"], "no content type"),
        (["{}", "x", "--type", "application/protobuf; proto"], ""),
    ],
)
def test_what_cannot_be_sent_is_said_in_one_line(
    node: NodeProcess, new_agent: NewAgent, arguments: list[str], says: str
) -> None:
    account = new_agent()
    arguments = [argument.replace("{}", account.name) for argument in arguments]
    if says:
        assert says in refused(node, "send", *arguments, environ={"AIMX_URL": account.url})
    else:
        node.aimx("send", *arguments, environ={"AIMX_URL": account.url})


def test_a_wrong_password_is_no_empty_inbox(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent()
    url = account.url.replace(account.password, "wrong")
    assert "may not sign in" in refused(node, "inbox", environ={"AIMX_URL": url})
    assert "nothing" in node.aimx("inbox", environ={"AIMX_URL": account.url}).stderr


def test_a_terminal_without_unicode(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent()
    sent = sends(node, account, account.name, '"Grüße"')
    plain = {"PYTHONIOENCODING": "ascii", "AIMX_URL": account.url}
    assert f"{account.name} -> {account.name}" in node.aimx("trace", sent["id"], environ=plain).stdout
    assert "+ store" in node.aimx("doctor", environ=plain).stdout
    shown = node.aimx("inbox", "--json", environ=plain).stdout
    assert shown.isascii()
    assert json.loads(shown)["payload"] == "Grüße"


def test_a_narrow_screen_breaks_between_phrases_and_a_pipe_never(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent("somebody")
    sent = sends(node, account, account.name, '"x"', "--subject", "A subject of many words and more", "--workflow", "w")
    node.aimx("inbox", "--ack", environ={"AIMX_URL": account.url})
    wide = node.aimx("trace", sent["id"], environ={"COLUMNS": ""}).stdout.splitlines()
    assert [line for line in wide if "A subject of many words and more  acknowledged in" in line]
    narrow = node.aimx("trace", sent["id"], environ={"COLUMNS": "60"}).stdout.splitlines()
    assert max(map(len, narrow)) <= 60
    assert [line for line in narrow if line.strip(" │").startswith("acknowledged in ")]


def test_nobody_there_to_say_yes(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent()
    done = node.aimx("agent", "remove", account.name, check=False, input="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().endswith("--yes removes it unasked")
    assert account.address in node.aimx("agent", "list").stdout


def test_send_by_agent_and_folder(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent()
    environ = {"AIMX_ADDRESS": account.name, "AIMX_PASSWORD": account.password}
    assert set(as_json(node, "send", account.name, "1", environ=environ)) == {"id", "message_id", "trace_id"}


def test_a_dry_run_prints_what_would_become_of_it(node: NodeProcess, new_agent: NewAgent) -> None:
    account, other = new_agent(), new_agent()
    text = node.aimx("send", other.name, "1", "--trace-only", environ={"AIMX_URL": account.url}).stdout
    assert "nothing was delivered" in text
    assert f"copy for {other.address}: delivered" in text
    assert "\\x0d" not in text
    report = as_json(
        node, "send", f"{other.name},{account.name}", "1", "--trace-only", environ={"AIMX_URL": account.url}
    )
    assert [one["recipient"] for one in report["recipients"]] == [other.address, account.address]
    assert node.bodies(other) == []
    assert "--wait" in refused(
        node, "send", other.name, "1", "--trace-only", "--wait", "1", code=2, environ={"AIMX_URL": account.url}
    )


def test_a_workflow_is_drawn_with_where_it_was_stopped(node: NodeProcess, new_agent: NewAgent) -> None:
    sides = new_agent(), new_agent()
    last = ""
    with node.smtp(sides[0]) as one, node.smtp(sides[1]) as two:
        for turn in range(13):
            sender, to = sides[turn % 2], sides[(turn + 1) % 2]
            head = f"From: {sender.address}\r\nMessage-ID: <{turn}@x>\r\nX-Workflow-ID: tennis \x1b[2J\r\n{last}"
            with pytest.raises(smtplib.SMTPDataError) if turn == 12 else nullcontext():
                (one, two)[turn % 2].sendmail(sender.address, [to.address], f"{head}\r\nyou first ({turn})\r\n")
            last = f"In-Reply-To: <{turn}@x>\r\n"
    drawn = node.aimx("workflow", "show", "tennis  [2J").stdout
    assert f"{sides[0].name} → {sides[1].name}" in drawn
    assert "12 messages between 2 agents" in drawn
    assert f"in a circle: {sides[0].name} → {sides[1].name} → {sides[0].name}" in drawn
    assert "raise max_alternations" in drawn
    found = as_json(node, "workflow", "show", "tennis  [2J")
    assert [(edge["messages"], edge["refused"]) for edge in found["edges"]] == [(6, 1), (6, 0)]
    assert found["warnings"] == []
    (stop,) = found["stops"]
    assert (stop["rule"], stop["count"], stop["limit"]) == ("alternations", 12, 12)
    assert stop["ring"] == [side.address for side in sides]
    by_trace = as_json(node, "workflow", "show", found["trace_ids"][0])
    assert by_trace["edges"] == found["edges"]
    assert "no message names the workflow" in refused(node, "workflow", "show", "nothing-of-that-name")


def test_a_workflow_says_of_what_it_was_warned(node: NodeProcess, new_agent: NewAgent) -> None:
    account, last = new_agent(), ""
    with node.smtp(account) as client:
        for number in range(5):
            head = f"From: {account.address}\r\nMessage-ID: <w{number}@x>\r\nX-Workflow-ID: echo\r\n{last}"
            client.sendmail(account.address, [account.address], f"{head}\r\nnote to self\r\n")
            last = f"In-Reply-To: <w{number}@x>\r\n"
    found = as_json(node, "workflow", "show", "echo")
    assert found["warnings"] == [{"rule": "repeats", "times": 2, "highest": 4, "limit": 3}]
    assert "repeats: warned 2 times, up to 4" in node.aimx("workflow", "show", "echo").stdout


def test_a_refusal_is_one_line(node: NodeProcess, new_agent: NewAgent) -> None:
    line = refused(node, "send", "nobody.at.all", "x", environ={"AIMX_URL": new_agent().url})
    assert line.startswith("aimx: 550 5.1.1 ")


def test_who_is_not_known_is_told_what_to_set(node: NodeProcess) -> None:
    assert "AIMX_URL" in refused(node, "send", "somebody", "x")
    assert "aimx://" in refused(node, "send", "somebody", "x", environ={"AIMX_URL": "http://x"})


def test_trace_shows_a_conversation(node: NodeProcess, new_agent: NewAgent) -> None:
    one, two = new_agent("one"), new_agent("two")
    sent = sends(node, one, two.name, '"question"', "--subject", "How long?", "--workflow", "w-trace")
    node.aimx("inbox", "--ack", "--wait", "10", environ={"AIMX_URL": two.url})
    shown = as_json(node, "trace", sent["trace_id"])
    assert shown["trace_ids"][0] == sent["trace_id"]
    assert [entry["subject"] for entry in shown["entries"]] == ["How long?"]
    assert {"accepted", "delivered", "read"} <= {step["kind"] for step in shown["entries"][0]["steps"]}
    for what in (sent["trace_id"], sent["id"], sent["message_id"], f"00-{sent['trace_id']}-0123456789abcdef-01"):
        assert as_json(node, "trace", what) == shown
    text = node.aimx("trace", sent["id"]).stdout
    assert f"{one.name} → {two.name}" in text
    assert "w-trace" in text
    assert "leaf" in node.aimx("trace", sent["id"], "--all").stdout


@pytest.mark.parametrize("what", ["0" * 32, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "<nobody@nowhere>", "rubbish"])
def test_trace_of_nothing(node: NodeProcess, what: str) -> None:
    assert refused(node, "trace", what).startswith("aimx: ")


def test_audit_verify_and_prove(node: NodeProcess, new_agent: NewAgent, tmp_path: Path) -> None:
    account = new_agent()
    sent = sends(node, account, account.name, '"to be proved"')
    file = tmp_path / "proof"
    proved = as_json(node, "audit", "prove", sent["id"], "-o", str(file))
    assert proved["eid"] == sent["id"]
    assert json.loads(proved["leaf"])["ev"] == "message.accepted"
    assert file.read_text() == proved["proof"]
    assert file.read_text().startswith("c2sp.org/tlog-proof@v1\n")
    report = as_json(node, "audit", "verify")
    assert (report["ok"], report["consistent"], report["anchored"]) == (True, "CONSISTENT", "NOT ANCHORED")
    assert node.aimx("audit", "verify").stdout.startswith("CONSISTENT, ")
    assert "no message" in refused(node, "audit", "prove", "01ARZ3NDEKTSV4RRFFQ69G5FAV")


def test_audit_verify_goes_on_from_the_last_time(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent()
    sends(node, account, account.name, "1")
    first = as_json(node, "audit", "verify")
    assert first["since"] == 0
    second = as_json(node, "audit", "verify", "--new")
    assert second["ok"]
    if not first["pending"]:
        assert second["since"] == first["size"]
        assert second["checked"]["leaves"] == second["size"] - first["size"]


def test_audit_verify_says_the_first_thing_that_is_wrong(tmp_path: Path) -> None:
    import sqlite3

    with NodeProcess(tmp_path) as node:
        account = node.add_agent("anna")
        sent = sends(node, account, "anna", '"x"')
        as_json(node, "audit", "prove", sent["id"])
    with sqlite3.connect(node.data / "mail.db") as db:
        db.execute("DELETE FROM event WHERE ev = 'delivery.mailbox'")
    done = node.aimx("audit", "verify", check=False)
    assert done.returncode == 4
    assert "UNRECONCILED" in done.stdout
    assert done.stderr.startswith("aimx: leaf-unexplained: ")


def test_audit_verify_holds_the_log_to_a_checkpoint_kept_elsewhere(
    node: NodeProcess, new_agent: NewAgent, tmp_path: Path
) -> None:
    account = new_agent()
    sent = sends(node, account, account.name, "1")
    proof = as_json(node, "audit", "prove", sent["id"])["proof"]
    kept = tmp_path / "checkpoint"
    kept.write_text(proof.partition("\n\n")[2])
    assert as_json(node, "audit", "verify", "--checkpoint", str(kept))["checked"]["remembered"] == 1
    lines = kept.read_text().split("\n")
    lines[2] = base64.b64encode(bytes(32)).decode()
    kept.write_text("\n".join(lines))
    done = node.aimx("audit", "verify", "--checkpoint", str(kept), check=False)
    assert done.returncode == 3
    assert "checkpoint" in done.stderr


def test_doctor_finds_a_healthy_node_healthy(node: NodeProcess) -> None:
    found = {finding["what"]: finding for finding in as_json(node, "doctor")}
    assert {"folder", "secrets", "smtps", "imaps", "http", "certificate", "store", "audit", "tracing"} <= set(found)
    assert not [finding for finding in found.values() if finding["verdict"] == "wrong"]


def test_doctor_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        (node.data / "admin.token").chmod(0o644)
        done = node.aimx("doctor", check=False)
        assert done.returncode == 1
        assert f"chmod 600 {node.data / 'admin.token'}" in " ".join(done.stdout.split())
        (node.data / "admin.token").chmod(0o600)
    stopped = {finding["what"]: finding for finding in as_json(node, "doctor")}
    assert (stopped["node"]["verdict"], stopped["node"]["text"]) == ("note", "not running")
    (node.data / "tls" / "server.pem").unlink()
    (node.data / "keys" / "log.key").unlink()
    for path in node.data.glob("mail.db*"):
        path.unlink()
    (node.data / "mail.db").write_bytes(os.urandom(8192))
    done = node.aimx("doctor", "--json", check=False, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:no-port"})
    broken = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert {what for what, one in broken.items() if one["verdict"] == "wrong"} == {"files", "certificate", "store"}
    assert "is no URL" in broken["tracing"]["text"]
    assert "store cannot be used" in refused(node, "agent", "list")


def test_route_explain(tmp_path: Path) -> None:
    config = """
        [[route]]
        name = "no-invoices"
        header = { Subject = "*invoice*" }
        refuse = "invoices go by post"

        [[route]]
        name = "reviews"
        workflow = "review-*"
        to = "pool:critics"
        priority = 3

        [pool.critics]
        members = ["critic1", "critic2"]
    """
    mail = tmp_path / "mail.eml"
    mail.write_text("From: anna@fabric.local\r\nTo: anna@fabric.local\r\nX-Workflow-ID: review-1\r\n\r\nhello\r\n")
    with NodeProcess(tmp_path / "node", config) as node:
        for name in ("anna", "critic1", "critic2"):
            node.add_agent(name)
        out = node.aimx("route", "explain", str(mail)).stdout
        assert "rule no-invoices: does not hold" in out
        assert "rule reviews: holds" in out
        assert "pool critics" in out
        (route,) = as_json(node, "route", "explain", str(mail))
        assert route["priority"] == 3
        assert route["landings"][0]["address"] in ("critic1@fabric.local", "critic2@fabric.local")
        mail.write_text("From: anna@fabric.local\r\nSubject: your invoice\r\n\r\n")
        assert "--to" in refused(node, "route", "explain", str(mail))
        assert "refused by no-invoices" in node.aimx("route", "explain", str(mail), "--to", "anna").stdout


def test_schema(node: NodeProcess, tmp_path: Path) -> None:
    file = tmp_path / "struct.desc"
    descriptor = descriptor_pb2.FileDescriptorProto()
    struct_pb2.DESCRIPTOR.CopyToProto(descriptor)
    file.write_bytes(descriptor_pb2.FileDescriptorSet(file=[descriptor]).SerializeToString())
    added = as_json(node, "schema", "add", str(file))
    assert added["name"] == "struct"
    assert "google.protobuf.Struct" in added["types"]
    assert as_json(node, "schema", "list") == [added]
    file.write_bytes(b"\xff\xff")
    assert "FileDescriptorSet" in refused(node, "schema", "add", str(file))


def test_a_token_opens_the_agents_own_view(node: NodeProcess, new_agent: NewAgent) -> None:
    import httpx

    account = new_agent()
    token = as_json(node, "agent", "token", account.name)["token"]
    found = httpx.get(
        f"{node.ready['http']}/v1/messages", headers={"Authorization": f"Bearer {token}"}, verify=node.tls()
    )
    assert found.status_code == 200


def test_secrets_are_for_their_owner_only(node: NodeProcess) -> None:
    assert stat.S_IMODE(node.data.stat().st_mode) == 0o700
    for name in ("admin.token", "node.secret", "mail.db", "audit.db", "ready.json"):
        assert stat.S_IMODE((node.data / name).stat().st_mode) == 0o600, name


def test_nothing_there_is_said_in_one_line(tmp_path: Path) -> None:
    for command in (["agent", "list"], ["trace", "0" * 32], ["audit", "verify"], ["schema", "list"]):
        done = subprocess.run(
            [*AIMX, *command, "--data", str(tmp_path / "no")], capture_output=True, text=True, env=clean_environ({})
        )
        assert done.returncode == 1
        assert done.stderr.startswith("aimx: there is no node in ")
        assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--smtp", "nonsense"], "--smtp (listen.smtp): 'nonsense' is not HOST:PORT"),
        (["--smtp", "300.1.1.1:0"], "--smtp (listen.smtp): '300.1.1.1' is not an IP address"),
        (["--config", "no.toml"], "config: there is no file 'no.toml'"),
    ],
)
def test_a_wrong_setting_stops_the_start(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [*AIMX, "serve", "--data", "data", *arguments],
        capture_output=True,
        text=True,
        env=clean_environ({}),
        cwd=tmp_path,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"aimx: {says}")
    assert done.stderr.count("\n") == 1


def test_a_wrong_setting_in_file_or_environment_stops_the_start(tmp_path: Path) -> None:
    config = tmp_path / "aimx.toml"
    for text, environ, says in (
        ("[smtp]\nmax_sise = 5\n", {}, "smtp.max_sise: there is no such setting"),
        ("", {"AIMX_DELIVERY__FIRST_DELAY": "soon"}, "AIMX_DELIVERY__FIRST_DELAY: 'soon' is not a duration"),
    ):
        config.write_text(text)
        done = subprocess.run(
            [*AIMX, "serve", "--data", str(tmp_path / "data"), "--config", str(config)],
            capture_output=True,
            text=True,
            env=clean_environ(environ),
            timeout=30,
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"aimx: {says}"), done.stderr


def test_the_first_start_says_what_to_type_next(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        out = tmp_path / "node.out"  # which is written after the file that says that it is ready
        wait_until(lambda: "aimx trace" in out.read_text(), 10)
        assert "aimx agent add" in out.read_text()
        assert "aimx send" in out.read_text()
        node.restart()
        assert (tmp_path / "node.out").read_text().count("aimx agent add critic") == 1


def test_help_is_there_for_every_command() -> None:
    for command in ([], ["serve"], ["agent"], ["agent", "add"], ["audit"], ["audit", "verify"], ["demo"], ["route"]):
        done = subprocess.run([*AIMX, *command, "--help"], capture_output=True, text=True, env=clean_environ({}))
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: aimx")
    assert refused_usage("no-such-thing").startswith("aimx: No such command")


def refused_usage(*arguments: str) -> str:
    done = subprocess.run([*AIMX, *arguments], capture_output=True, text=True, env=clean_environ({}))
    assert done.returncode == 2
    return done.stderr.strip().splitlines()[-1]
