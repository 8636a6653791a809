"""A node as its operator meets it: started, told wrong things, reloaded, watched, stopped."""

import json
import os
import re
import smtplib
import socket
import ssl
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.node_process import LISTENERS, NodeProcess
from tests.otlp_receiver import wait_until
from tests.system.crash_load import TROUBLE, Book, Door, Submitter, account_for, look


def read_line(connection):
    line = b""
    while not line.endswith(b"\r\n"):
        piece = connection.recv(1)
        if not piece:
            break
        line += piece
    return line


def dialogue(node, door, lines, until=rb"\d{3} |a\d+ "):
    """What a plain-text client gets for each line."""
    answers = []
    with socket.create_connection(node.endpoint(door), timeout=10) as connection:
        read_line(connection)
        for line in lines:
            connection.sendall(line + b"\r\n")
            answer = read_line(connection)
            last = answer
            while last and not re.match(until, last):
                last = read_line(connection)
                answer += last
            answers.append(answer)
    return answers


# ── the first start ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_ready_file_says_where_everything_is(node):
    assert set(node.ready) == {*LISTENERS, "ca", "admin_token_file"}
    for name in LISTENERS:
        with socket.create_connection(node.endpoint(name), timeout=5):
            pass
    assert stat.S_IMODE(os.stat(node.data).st_mode) == 0o700
    for path in node.data.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022, f"{path} can be written by others"
    assert stat.S_IMODE(os.stat(node.ready["admin_token_file"]).st_mode) == 0o600


def test_what_it_prints_at_first_says_what_to_type_next(node):
    until = time.monotonic() + 10
    said = ""
    while "ready:" not in said:  # its last word, which may come after the ready file
        assert time.monotonic() < until, said
        said = (node.folder / "node.out").read_text()
    assert "aimx agent add" in said
    assert "aimx send" in said


def test_a_second_node_on_the_same_folder_is_refused(node):
    done = node.aimx("serve", "--data", str(node.data), *[f"--{name}=127.0.0.1:0" for name in LISTENERS], check=False)
    assert done.returncode != 0
    assert re.search(r"^aimx: data: another node runs on ", done.stderr, re.MULTILINE), done.stderr


# ── wrong settings ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flags", "toml", "names"),
    [
        (["--smtp", "nowhere"], "", "listen.smtp"),
        (["--imaps", "127.0.0.1:99999"], "", "listen.imaps"),
        ([], "[smtp]\nmax_size = 'big'", "smtp.max_size"),
        ([], "[smtp]\nmax_sise = 1", "smtp.max_sise"),
        ([], "[delivery]\nfirst_delay = 'soon'", "delivery.first_delay"),
        ([], "[[route]]\nname = 'x'", "route"),
        ([], "this is no toml", "config"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(tmp_path, flags, toml, names):
    node = NodeProcess(tmp_path, toml)
    free = [f"--{name}=127.0.0.1:0" for name in LISTENERS if f"--{name}" not in flags]
    done = node.aimx("serve", "--data", str(node.data), "--config", str(node.toml), *free, *flags, check=False)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.strip().splitlines()
    assert names in line
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = NodeProcess(tmp_path)
        free = [f"--{name}=127.0.0.1:0" for name in LISTENERS if name != "imap"]
        done = node.aimx("serve", "--data", str(node.data), *free, f"--imap=127.0.0.1:{port}", check=False)
    assert done.returncode == 1
    assert re.search(rf"^aimx: listen\.imap: 127\.0\.0\.1:{port} .*--imap$", done.stderr, re.MULTILINE), done.stderr


# ── doors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", ["smtps", "imaps", "http"])
def test_tls_below_1_3_is_refused(node, door):
    context = node.tls()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(node.endpoint(door), timeout=10) as connection,
        pytest.raises((ssl.SSLError, ConnectionError)),
        context.wrap_socket(connection, server_hostname="localhost") as wrapped,
    ):
        wrapped.recv(1)


@pytest.mark.parametrize("door", ["smtps", "imaps", "http"])
def test_tls_1_3_is_spoken_and_the_certificate_is_the_nodes_own(node, door):
    with (
        socket.create_connection(node.endpoint(door), timeout=10) as connection,
        node.tls().wrap_socket(connection, server_hostname="localhost") as wrapped,
    ):
        assert wrapped.version() == "TLSv1.3"


@pytest.mark.parametrize("door", ["smtp", "imap"])
def test_starttls_below_1_3_is_refused(node, door):
    context = node.tls()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(node.endpoint(door), timeout=10) as connection:
        read_line(connection)
        connection.sendall(b"STARTTLS\r\n" if door == "smtp" else b"a1 STARTTLS\r\n")
        assert read_line(connection)[:3] in (b"220", b"a1 ", b"530", b"503")
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            context.wrap_socket(connection, server_hostname="localhost") as wrapped,
        ):
            wrapped.recv(1)


def test_in_the_clear_smtp_offers_starttls_and_nothing_else(node):
    ehlo, auth, mail, rcpt, data = dialogue(
        node, "smtp", [b"EHLO me", b"AUTH PLAIN AGEAYg==", b"MAIL FROM:<a@fabric.local>", b"RCPT TO:<a@b.c>", b"DATA"]
    )
    assert b"STARTTLS" in ehlo
    assert b"AUTH" not in ehlo
    for answer in (auth, mail, rcpt, data):
        assert re.match(rb"5\d\d ", answer), answer


def test_in_the_clear_imap_offers_starttls_and_nothing_else(node):
    capability, login, authenticate, select = dialogue(
        node,
        "imap",
        [b"a1 CAPABILITY", b"a2 LOGIN x y", b"a3 AUTHENTICATE PLAIN AGEAYg==", b"a4 SELECT INBOX"],
        rb"a\d ",
    )
    assert b"STARTTLS" in capability
    assert b"LOGINDISABLED" in capability
    assert b"AUTH=" not in capability
    for answer in (login, authenticate, select):
        assert re.search(rb"a\d (NO|BAD) ", answer), answer


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_logs_are_json_and_hold_no_secrets(tmp_path):
    node = NodeProcess(tmp_path, flags=("--log-level", "debug"))
    with node:
        planner, critic = node.add_agent("planner"), node.add_agent("critic")
        secret = "a body that nobody but critic may read"
        text = f"From: {planner.address}\r\nSubject: private matter\r\n\r\n{secret}\r\n"
        with node.smtp(planner) as client:
            client.sendmail(planner.address, [critic.address], text)
            with suppress(Exception):
                client.sendmail(planner.address, ["nobody@fabric.local"], text)
        node.bodies(critic)
        with node.smtp() as client, suppress(Exception):
            client.login(planner.address, "a wrong password")
        token = Path(node.ready["admin_token_file"]).read_text().strip()
    lines = node.lines()
    assert lines
    for line in lines:
        assert {"ts", "level", "logger", "msg"} <= line.keys()
        assert ("trace_id" in line) == ("span_id" in line)
    said = node.log.read_text() + (node.folder / "node.out").read_text()
    for hidden in (planner.password, critic.password, "a wrong password", token, secret, "private matter"):
        assert hidden not in said


def test_a_log_line_about_a_message_carries_its_trace(tmp_path):
    node = NodeProcess(tmp_path, "[[route]]\nname = 'closed'\nrefuse = 'closed'\n")
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with node:
        planner, critic = node.add_agent("planner"), node.add_agent("critic")
        text = f"From: {planner.address}\r\ntraceparent: 00-{trace_id}-b7ad6b7169203331-01\r\n\r\nhello\r\n"
        with node.smtp(planner) as client, pytest.raises(smtplib.SMTPDataError):
            client.sendmail(planner.address, [critic.address], text)
    (line,) = [line for line in node.lines() if line.get("trace_id") == trace_id]
    assert line["event"] == "message.refused"
    assert re.fullmatch("[0-9a-f]{16}", line["span_id"])


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────

REFUSING = "[[route]]\nname = 'closed'\nworkflow = 'closed-*'\nrefuse = 'this workflow is closed'\n"


def test_rules_are_reloaded_and_a_bad_file_keeps_the_old_ones(tmp_path):
    node = NodeProcess(tmp_path)
    with node:
        planner, critic = node.add_agent("planner"), node.add_agent("critic")

        def answer():
            with node.smtp(planner) as client:
                client.ehlo()
                client.mail(planner.address)
                client.rcpt(critic.address)
                return client.data(f"From: {planner.address}\r\nX-Workflow-ID: closed-1\r\n\r\nhello\r\n")

        def logged(event):
            return lambda: any(line.get("event") == event for line in node.lines())

        assert answer()[0] == 250
        node.configure(REFUSING)
        wait_until(logged("rules.reloaded"))
        code, text = answer()
        assert (code, b"this workflow is closed" in text) == (550, True)
        node.configure(REFUSING + "[[route]]\nname = 'broken'\n")
        wait_until(logged("rules.kept"))
        (kept,) = [line for line in node.lines() if line.get("event") == "rules.kept"]
        assert "broken" in kept["msg"]
        assert answer()[0] == 550
        node.configure("")
        wait_until(lambda: answer()[0] == 250)
        verdict = json.loads(node.aimx("audit", "verify", "--json").stdout)
        assert verdict["ok"]


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sigterm_under_load_finishes_what_it_holds_in_time(tmp_path):
    node = NodeProcess(tmp_path).start()
    try:
        senders = [node.add_agent(f"sender{n}") for n in range(2)]
        reader = node.add_agent("reader")
        book, door = Book(), Door(node)
        crew = [Submitter(f"c{n}", door, senders[n % 2], [reader, senders[0]], book, n) for n in range(4)]
        for one in crew:
            one.start()
        with node.imap(reader) as idler:
            idler.send(b"x1 IDLE\r\n")  # a session that would stay for ever
            door.open()
            wait_until(lambda: len(book.answered) > 100, 30)
            door.shut()
            assert node.stop() < 10
        node.start()
        door.open()
        time.sleep(0.2)
        door.end()
        for one in crew:
            one.join(30)
            assert one.failure is None, one.failure
        boxes = {account.address: [look(node, account)] for account in (reader, senders[0])}
        assert account_for(book, boxes) == []
        assert json.loads(node.aimx("audit", "verify", "--json").stdout)["complete"] == "COMPLETE"
        node.stop()
    finally:
        if node.process is not None:
            node.kill()


def test_clients_that_say_nothing_do_not_hold_up_the_end(tmp_path):
    node = NodeProcess(tmp_path).start()
    silent = [socket.create_connection(node.endpoint(name), timeout=5) for name in LISTENERS for _ in range(3)]
    try:
        assert node.stop() < 10
    finally:
        for connection in silent:
            connection.close()


def test_a_message_half_sent_at_the_end_is_answered_or_not_taken(tmp_path):
    node = NodeProcess(tmp_path).start()
    planner, critic = node.add_agent("planner"), node.add_agent("critic")
    with node.smtp(planner) as client:
        client.mail(planner.address)
        client.rcpt(critic.address)
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send(f"From: {planner.address}\r\n\r\nhalf".encode())
        stopping = threading.Thread(target=node.stop)
        stopping.start()
        code = 0
        with suppress(*TROUBLE):
            client.send(b" and half\r\n.\r\n")
            code, _ = client.getreply()
        stopping.join(20)
        assert not stopping.is_alive()
        client.sock = None
    node.start()
    assert len(node.bodies(critic)) == (1 if code == 250 else 0)
    node.stop()
