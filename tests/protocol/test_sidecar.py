"""The HTTP side over a real store and audit log: what is answered, to whom, and what is recorded of it."""

import asyncio
import base64
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgpack
import pytest

from aimx.audit.evidence import Evidence, check
from aimx.audit.keys import load_public
from aimx.audit.succession import Sharding
from aimx.sdk.receipt import Receipt, State
from aimx.sidecar.problems import PROBLEMS, TYPE
from aimx.store.contract import MessageRecord, Unavailable
from aimx.tlog import checkpoint, tile
from aimx.tlog import receipt as tlog_receipt
from aimx.tlog.leaf import canonical
from aimx.tlog.tree import leaf_hash, verify_consistency
from tests.protocol.sidecar_world import (
    ADMIN,
    CRITIC,
    PLANNER,
    RESEARCHER,
    SCRAPER,
    SPAN,
    TRACE,
    World,
    json_payload,
    world,
)

NOBODY = "01KAQ5XV2M8Z7Q4T9H3W6E1R0C"
TOKEN_PATHS = [
    "/metrics",
    "/openapi.json",
    "/v1/messages",
    f"/v1/messages/{NOBODY}",
    f"/v1/messages/{NOBODY}/raw",
    f"/v1/traces/{TRACE.hex()}",
    "/v1/workflows/report-17",
    "/v1/audit/verify",
    f"/v1/audit/messages/{NOBODY}/proof",
    "/tile/entries/000",
    "/log/2026h1/tile/entries/000",
]
OPEN_PATHS = [
    *("/healthz", "/readyz", "/checkpoint", "/tile/0/000.p/1"),
    *("/verify", "/v1/audit/consistency?from=0&to=0"),
    *("/log/shards", "/log/2026h1/checkpoint", "/log/2026h1/tile/0/000.p/1"),
]
ADMIN_PATHS = [
    "/metrics",
    "/v1/audit/verify",
    "/v1/audit/verifications",
    "/v1/audit/holds",
    "/tile/entries/000",
    "/log/2026h1/tile/entries/000",
]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


@pytest.fixture
async def http(here: World) -> AsyncIterator[httpx.AsyncClient]:
    async with here.client() as client:
        yield client


async def get(http: httpx.AsyncClient, path: str, **params: str) -> Any:
    answer = await http.get(path, params=params or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def assert_problem(answer: httpx.Response, name: str) -> dict[str, Any]:
    kind = PROBLEMS[name]
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert (answer.status_code, found["type"], found["status"]) == (kind.status, TYPE + name, kind.status)
    assert found["title"]
    assert found["detail"]
    for header, value in kind.headers.items():
        assert answer.headers[header] == value
    return found


# ── doors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", "Basic YTpi", "Bearer " + "x" * 600, "Bearer \xff\xfe", "nonsense"]
)
async def test_nothing_but_the_open_paths_answers_without_a_token(here: World, header: str | None) -> None:
    async with here.client(None) as http:
        headers = {} if header is None else {"Authorization": header.encode("latin-1")}
        for path in TOKEN_PATHS:
            assert_problem(await http.get(path, headers=headers), "unauthenticated")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", OPEN_PATHS)
async def test_open_paths_need_no_token(here: World, path: str) -> None:
    await here.sequencer.flush()
    async with here.client(None) as http:
        assert (await http.get(path)).status_code == 200


@pytest.mark.parametrize("path", ADMIN_PATHS)
async def test_an_agents_token_opens_nothing_of_the_nodes(here: World, path: str) -> None:
    async with here.client(here.agents[PLANNER]) as http:
        assert_problem(await http.get(path), "forbidden")


async def test_a_disabled_agents_token_is_worth_nothing(here: World) -> None:
    agent = await here.store.agent(PLANNER)
    assert agent is not None
    async with here.client(here.agents[PLANNER]) as http:
        assert (await http.get("/v1/messages")).status_code == 200
        await here.store.update_agent(replace(agent, disabled=True), [])
        assert_problem(await http.get("/v1/messages"), "unauthenticated")


async def test_every_answer_carries_the_security_headers(here: World, http: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/v1/messages", "/nowhere", "/v1/messages/x"):
        answer = await http.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_head_answers_as_get_without_the_content(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    whole = await http.get(f"/v1/messages/{eid}/raw")
    head = await http.head(f"/v1/messages/{eid}/raw")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(whole.content))


# ── problems ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_unknown_path_is_a_problem(http: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v2/messages", "/v1/messages/", "/docs", "/tile", "/tile/0"):
        assert_problem(await http.get(path), "not-found")


async def test_other_methods_are_a_problem_that_names_the_right_ones(http: httpx.AsyncClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
        assert_problem(await http.request(method, "/v1/messages"), "method-not-allowed")


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/v1/messages?limit=0", "query.limit"),
        ("/v1/messages?limit=201", "query.limit"),
        ("/v1/messages?limit=ten", "query.limit"),
        ("/v1/messages?trace_id=" + "0" * 31, "query.trace_id"),
        ("/v1/messages?trace_id=" + "A" * 32, "query.trace_id"),
        ("/v1/messages?cursor=1", "query.cursor"),
        ("/v1/messages?trace=1", "query.trace"),
        ("/v1/messages/nope", "path.id"),
        ("/v1/messages/nope/raw", "path.id"),
        ("/v1/traces/nope", "path.trace_id"),
        ("/v1/audit/messages/nope/proof", "path.id"),
        ("/tile/0/1", "path.path"),
        ("/tile/64/000", "path.level"),
        ("/tile/00/000", "path.level"),
        ("/tile/entries/x", "path.path"),
    ],
)
async def test_a_wrong_value_is_named(http: httpx.AsyncClient, path: str, where: str) -> None:
    found = assert_problem(await http.get(path), "invalid-request")
    assert where in [error["where"] for error in found["errors"]]


async def test_a_failure_of_ours_is_a_problem_without_its_cause(
    here: World, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(here.store, "message", broken)
    answer = await http.get(f"/v1/messages/{NOBODY}")
    assert_problem(answer, "failed")
    assert "swordfish" not in answer.text
    assert "a request failed" in caplog.text


async def test_a_store_that_cannot_serve_is_said_so(
    here: World, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> None:
        raise Unavailable("disk I/O error")

    monkeypatch.setattr(here.store, "find", gone)
    answer = await http.get("/v1/messages")
    assert_problem(answer, "unavailable")
    assert "disk" not in answer.text


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_pages_go_through_everything_once_while_mail_comes_in(here: World, http: httpx.AsyncClient) -> None:
    sent = [await here.send(PLANNER, RESEARCHER) for _ in range(7)]
    seen: list[str] = []
    path: str | None = "/v1/messages?limit=3"
    while path:
        answer = await http.get(path)
        page = answer.json()
        seen += [item["id"] for item in page["items"]]
        await here.send(PLANNER, CRITIC)
        path = None
        if page["next_cursor"]:
            assert answer.links["next"]["url"].endswith(f"cursor={page['next_cursor']}")
            path = answer.links["next"]["url"]
    assert seen == sent[::-1]


async def test_filters_narrow_and_combine(here: World, http: httpx.AsyncClient) -> None:
    other = bytes.fromhex("11" * 16)
    one = await here.send(PLANNER, RESEARCHER)
    two = await here.send(PLANNER, CRITIC, trace=other, workflow="other work/42")
    three = await here.send(RESEARCHER, CRITIC)

    async def ids(**params: str) -> list[str]:
        return [item["id"] for item in (await get(http, "/v1/messages", **params))["items"]]

    assert await ids(trace_id=other.hex()) == [two]
    assert await ids(workflow="other work/42") == [two]
    assert await ids(agent=CRITIC) == [three, two]
    assert await ids(agent=PLANNER.upper()) == [two, one]
    assert await ids(agent=CRITIC, trace_id=TRACE.hex()) == [three]
    assert await ids(message_id=f"<{one}@fabric.local>") == await ids(message_id=f"{one}@fabric.local") == [one]
    assert await ids(workflow="nobody's") == []


async def test_a_message_in_full(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER, payload=json_payload({"task": "find", "n": [1, 2.5, None]}))
    await here.sequencer.flush()
    found = await get(http, f"/v1/messages/{eid}")
    assert found["message"]["sender"] == PLANNER
    assert found["message"]["delivered_to"] == [RESEARCHER]
    assert found["message"]["trace_id"] == TRACE.hex()
    assert found["payload"] == {
        "content_type": "application/json",
        "size": 39,
        "value": {"task": "find", "n": [1, 2.5, None]},
        "note": None,
    }
    assert [event["event"] for event in found["events"]] == [
        "message.accepted",
        "delivery.mailbox",
        "mailbox.accessed",
    ]
    first = found["events"][0]
    assert (first["id"], first["span_id"]) == (eid, SPAN.hex())
    assert first["audit_index"] is not None
    assert found["copies"] == [{"owner": RESEARCHER, "folder": "INBOX", "uid": 1, "flags": []}]
    assert found["waiting"] == []
    assert found["trace_ids"] == [TRACE.hex()]


async def test_a_message_is_also_found_by_its_message_id(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    name = quote(f"<{eid}@fabric.local>", safe="")
    assert (await get(http, f"/v1/messages/{name}"))["message"]["id"] == eid
    async with here.client(here.agents[CRITIC]) as stranger:
        assert_problem(await stranger.get(f"/v1/messages/{name}"), "not-found")


async def test_what_waits_says_for_whom_why_and_until_when(here: World, http: httpx.AsyncClient) -> None:
    await here.send(PLANNER, CRITIC)
    eid = await here.send(PLANNER, CRITIC)
    found = await get(http, f"/v1/messages/{eid}")
    (waiting,) = found["waiting"]
    assert (waiting["address"], waiting["reason"], waiting["attempt"]) == (CRITIC, "unacknowledged", 1)
    assert waiting["next_ms"] - waiting["created_ms"] == 60_000
    assert found["copies"] == []


@pytest.mark.parametrize(
    ("content_type", "payload", "value", "note"),
    [
        ("application/msgpack", msgpack.packb({"n": 1, "raw": b"\x00\xff"}), {"n": 1, "raw": "AP8="}, None),
        ("text/plain", b"hello\r\n", "hello", None),
        ("application/protobuf", b"\x08\x96\x01", {"1": 150}, "field number"),
        ("application/json", b"{broken", "{broken", "not JSON"),
        ("application/json", b'"\\ud800"', "?", None),
        ("application/json", b"1" + b"0" * 400, None, None),
        ("application/json", b"[" * 5000 + b"]" * 5000, None, None),
        ("application/octet-stream", b"\x00\x01", "AAE=", "base 64"),
    ],
)
async def test_any_payload_is_shown_as_json(
    here: World, http: httpx.AsyncClient, content_type: str, payload: bytes, value: Any, note: str | None
) -> None:
    eid = await here.send(PLANNER, RESEARCHER, payload=payload, content_type=content_type)
    shown = (await get(http, f"/v1/messages/{eid}"))["payload"]
    if value is not None:
        assert shown["value"] == value
    assert note is None or note in shown["note"]


async def test_protobuf_is_shown_by_its_registered_descriptor(here: World, http: httpx.AsyncClient) -> None:
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto(name="task.proto", package="lab", syntax="proto3")
    task = file.message_type.add(name="Task")
    task.field.add(name="priority", number=1, type=5, label=1)
    await here.store.add_schema(
        "lab", descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString(), 1_780_000_000_000, []
    )
    eid = await here.send(
        PLANNER, RESEARCHER, payload=b"\x08\x96\x01", content_type='application/protobuf; proto="lab.Task"'
    )
    shown = (await get(http, f"/v1/messages/{eid}"))["payload"]
    assert shown["value"] == {"priority": 150}
    assert shown["note"] is None


async def test_raw_is_the_stored_message_octet_for_octet_also_when_large(here: World, http: httpx.AsyncClient) -> None:
    body = bytes(range(256)) * 2600 + b"\r\n"
    eid = await here.send(PLANNER, RESEARCHER, payload=body, content_type="application/octet-stream")
    answer = await http.get(f"/v1/messages/{eid}/raw")
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.content == (await here.store.header(eid) or b"") + body


async def test_an_erased_message_keeps_its_history_and_has_no_content(
    here: World, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    record = await here.store.message(eid)
    assert record is not None

    async def erased(_: str) -> MessageRecord:
        return replace(record, erased=True)

    monkeypatch.setattr(here.store, "message", erased)
    found = await get(http, f"/v1/messages/{eid}")
    assert (found["erased"], found["payload"]) == (True, None)
    assert [event["event"] for event in found["events"]] == ["message.accepted", "delivery.mailbox"]
    assert_problem(await http.get(f"/v1/messages/{eid}/raw"), "erased")


async def test_a_body_too_large_to_show_is_left_to_raw(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER, payload=b"x" * (3 << 20))
    shown = (await get(http, f"/v1/messages/{eid}"))["payload"]
    assert shown["value"] is None
    assert "too large" in shown["note"]


# ── who may see what ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_agent_sees_what_it_sent_or_received_and_nothing_else(here: World) -> None:
    own = await here.send(PLANNER, RESEARCHER)
    got = await here.send(CRITIC, PLANNER)
    foreign = await here.send(RESEARCHER, CRITIC)
    await here.sequencer.flush()
    async with here.client(here.agents[PLANNER]) as http:
        assert [item["id"] for item in (await get(http, "/v1/messages"))["items"]] == [got, own]
        assert (await get(http, "/v1/messages", agent=RESEARCHER))["items"][0]["id"] == own
        for eid in (own, got):
            assert (await http.get(f"/v1/messages/{eid}")).status_code == 200
            assert (await http.get(f"/v1/messages/{eid}/raw")).status_code == 200
            assert (await http.get(f"/v1/audit/messages/{eid}/proof")).status_code == 200
        for path in (
            f"/v1/messages/{foreign}",
            f"/v1/messages/{foreign}/raw",
            f"/v1/audit/messages/{foreign}/proof",
        ):
            assert_problem(await http.get(path), "not-found")


async def test_a_trace_or_workflow_shows_an_agent_only_its_own_part(here: World) -> None:
    own = await here.send(PLANNER, RESEARCHER)
    foreign = await here.send(RESEARCHER, CRITIC)
    await here.refuse(CRITIC, RESEARCHER, answers=foreign)
    refused = await here.refuse(PLANNER, RESEARCHER, answers=own)
    async with here.client(here.agents[PLANNER]) as http:
        trace = await get(http, f"/v1/traces/{TRACE.hex()}")
        assert [message["id"] for message in trace["messages"]] == [own]
        assert [entry["id"] for entry in trace["tree"]["entries"]] == [own, refused]
        assert CRITIC not in json.dumps(trace)
        workflow = await get(http, "/v1/workflows/report-17")
        assert [message["id"] for message in workflow["messages"]] == [own]
        assert CRITIC not in json.dumps(workflow)
        await here.send(RESEARCHER, CRITIC, workflow="theirs", trace=b"\x22" * 16)
        assert_problem(await http.get("/v1/workflows/theirs"), "not-found")
        assert_problem(await http.get(f"/v1/traces/{'22' * 16}"), "not-found")


async def test_a_recipient_does_not_learn_who_else_received_it(here: World) -> None:
    eid = await here.send(PLANNER, RESEARCHER, CRITIC)
    await here.sequencer.flush()
    async with here.client(here.agents[RESEARCHER]) as http:
        pages = [
            await get(http, path)
            for path in (
                f"/v1/messages/{eid}",
                "/v1/messages",
                f"/v1/traces/{TRACE.hex()}",
                "/v1/workflows/report-17",
                f"/v1/audit/messages/{eid}/proof",
            )
        ]
    assert CRITIC not in json.dumps(pages)
    assert pages[0]["message"]["recipients"] == [RESEARCHER]
    async with here.client(here.agents[PLANNER]) as http:
        assert (await get(http, f"/v1/messages/{eid}"))["message"]["recipients"] == [RESEARCHER, CRITIC]


# ── the admin's reading is provable ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/v1/messages/{}", "/v1/messages/{}/raw"])
async def test_what_an_admin_reads_is_recorded_and_both_sides_can_prove_it(here: World, path: str) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    async with here.client() as http:
        assert (await http.get(path.format(eid))).status_code == 200
    await here.sequencer.flush()
    for agent in (PLANNER, RESEARCHER):
        async with here.client(here.agents[agent]) as http:
            found = await get(http, f"/v1/messages/{eid}")
            (access,) = [event for event in found["events"] if event["event"] == "mailbox.accessed"]
            assert access["agent"] == "admin"
            assert access["trace_id"] == TRACE.hex()
            proof = await get(http, f"/v1/audit/messages/{eid}/proof", event=access["id"])
            evidence = Evidence.from_json(proof)
            check(evidence, here.keys.log.verifier)
            assert json.loads(evidence.leaf)["admin"] is True
            assert evidence.opening["by"] == "admin"


async def test_an_agents_own_reading_is_no_access_by_an_admin(here: World) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    async with here.client(here.agents[RESEARCHER]) as http:
        await http.get(f"/v1/messages/{eid}/raw")
        found = await get(http, f"/v1/messages/{eid}")
    assert "mailbox.accessed" not in [event["event"] for event in found["events"]]


@pytest.mark.parametrize("path", ["/v1/messages/{}", "/v1/messages/{}/raw"])
async def test_what_cannot_be_recorded_is_not_shown(here: World, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eid = await here.send(PLANNER, RESEARCHER, payload=json_payload("the secret plan"))

    async def full(*_: object) -> None:
        raise Unavailable("disk full")

    monkeypatch.setattr(here.store, "record", full)
    async with here.client() as http:
        answer = await http.get(path.format(eid))
    assert_problem(answer, "unavailable")
    assert "secret" not in answer.text


# ── traces and workflows ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_trace_shows_who_answered_whom_and_what_was_refused(here: World, http: httpx.AsyncClient) -> None:
    one = await here.send(PLANNER, RESEARCHER)
    two = await here.send(RESEARCHER, PLANNER, answers=one, depth=2)
    refused = await here.refuse(PLANNER, RESEARCHER, answers=two)
    found = await get(http, f"/v1/traces/{TRACE.hex()}")
    assert [message["id"] for message in found["messages"]] == [one, two]
    tree = found["tree"]
    assert [(entry["id"], entry["parent"], entry["level"]) for entry in tree["entries"]] == [
        (one, None, 0),
        (two, one, 1),
        (refused, two, 2),
    ]
    assert tree["outcome"] == "refused"
    assert [event["event"] for event in found["events"]] == [
        "message.accepted",
        "delivery.mailbox",
        "message.accepted",
        "delivery.mailbox",
        "loop.refused",
    ]


async def test_an_unknown_trace_or_workflow_is_not_found(http: httpx.AsyncClient) -> None:
    assert_problem(await http.get("/v1/traces/" + "0" * 32), "not-found")
    assert_problem(await http.get("/v1/workflows/nobody"), "not-found")


async def test_a_workflow_in_order_with_agents_counts_and_warnings(here: World, http: httpx.AsyncClient) -> None:
    name = "team/report 17?#%"
    one = await here.send(PLANNER, CRITIC, workflow=name)
    two = await here.send(PLANNER, CRITIC, workflow=name, trace=b"\x33" * 16, depth=16)
    await here.refuse(PLANNER, CRITIC, answers=one, workflow=name)
    found = await get(http, f"/v1/workflows/{quote(name, safe='')}")
    assert found["workflow"] == name
    assert [message["id"] for message in found["messages"]] == [one, two]
    assert found["trace_ids"] == [TRACE.hex(), "33" * 16]
    assert found["depth"] == 16
    assert found["counts"]["messages"] == 2
    assert [(agent["address"], agent["sent"], agent["received"]) for agent in found["agents"]] == [
        (PLANNER, 2, 0),
        (CRITIC, 0, 1),
    ]
    assert [warning["kind"] for warning in found["warnings"]] == ["waiting", "refused", "deep"]


# ── the audit log ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_proof_can_be_checked_offline(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    await here.sequencer.flush()
    found = await get(http, f"/v1/audit/messages/{eid}/proof")
    evidence = Evidence.from_json(found)
    check(evidence, here.keys.log.verifier)
    assert found["eid"] == eid
    assert found["verifiers"][0] == here.keys.log.verifier.vkey()
    assert evidence.opening["from"] == PLANNER
    assert canonical(json.loads(found["leaf"])) == found["leaf"].encode()


async def test_what_is_not_in_a_checkpoint_yet_is_asked_for_again(
    here: World, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(limit: int) -> list[object]:
        return []

    await here.sequencer.flush()
    monkeypatch.setattr(here.store, "unsequenced", nothing)
    eid = await here.send(PLANNER, RESEARCHER)
    assert_problem(await http.get(f"/v1/audit/messages/{eid}/proof"), "not-logged-yet")


async def test_an_event_of_another_message_is_not_proved_here(here: World, http: httpx.AsyncClient) -> None:
    one, two = await here.send(PLANNER, RESEARCHER), await here.send(PLANNER, RESEARCHER)
    await here.sequencer.flush()
    assert_problem(await http.get(f"/v1/audit/messages/{one}/proof?event={two}"), "not-found")


async def test_the_logs_files_are_what_c2sp_says(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    await here.sequencer.flush()
    answer = await http.get("/checkpoint")
    assert answer.headers["content-type"].startswith("text/plain")
    signed = checkpoint.open_signed(answer.content, here.keys.log.verifier).checkpoint
    hashes = await http.get(f"/tile/0/000.p/{signed.size}")
    assert hashes.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert len(tile.hashes(hashes.content)) == signed.size
    bundle = await http.get(f"/tile/entries/000.p/{signed.size}")
    assert bundle.headers["cache-control"] == "no-store"
    leaves = tile.decode_bundle(bundle.content)
    assert eid in [json.loads(leaf)["eid"] for leaf in leaves]
    assert_problem(await http.get(f"/tile/0/000.p/{signed.size + 100}"), "not-found")
    assert_problem(await http.get("/tile/0/000"), "not-found")
    assert_problem(await http.get("/tile/0/x000/000"), "not-found")


async def test_verify_reports_and_runs_one_at_a_time(here: World, http: httpx.AsyncClient) -> None:
    await here.send(PLANNER, RESEARCHER)
    await here.sequencer.flush()
    found = await get(http, "/v1/audit/verify")
    assert (found["ok"], found["consistent"], found["complete"]) == (True, "CONSISTENT", "COMPLETE"), found
    async with here.app.state.verifier.turn:
        assert_problem(await http.get("/v1/audit/verify"), "busy")
        assert_problem(await http.post("/v1/audit/verifications"), "busy")


async def test_a_damaged_log_is_reported_and_not_a_crash(here: World, http: httpx.AsyncClient) -> None:
    await here.send(PLANNER, RESEARCHER)
    await here.sequencer.flush()
    with sqlite3.connect(here.folder / "audit.db") as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE leaf SET entry = CAST(replace(CAST(entry AS TEXT), 'n1', 'n2') AS BLOB) WHERE idx = 1")
    found = await get(http, "/v1/audit/verify")
    assert found["ok"] is False
    assert found["first"]["kind"] == "leaf-edited"


async def test_a_verification_is_a_job_whose_result_is_kept(here: World, http: httpx.AsyncClient) -> None:
    await here.send(PLANNER, RESEARCHER)
    await here.sequencer.flush()
    begun = await http.post("/v1/audit/verifications")
    assert begun.status_code == 202
    place = begun.headers["location"]
    while (found := await get(http, place))["state"] == "running":
        await asyncio.sleep(0.01)
    assert found["state"] == "done"
    assert found["done"] == found["total"] > 0
    assert (found["report"]["ok"], found["report"]["complete"]) == (True, "COMPLETE")
    assert found["ended_ms"] >= found["started_ms"]
    assert [job["id"] for job in (await get(http, "/v1/audit/verifications"))["items"]] == [begun.json()["id"]]
    assert_problem(await http.get(f"/v1/audit/verifications/{NOBODY}"), "not-found")


async def test_the_log_of_any_size_begins_with_that_of_any_smaller(here: World) -> None:
    for _ in range(9):
        await here.send(PLANNER, RESEARCHER)
    await here.sequencer.flush()
    async with here.client(None) as http:
        newest = checkpoint.parse((await http.get("/checkpoint")).text.partition("\n\n")[0] + "\n")
        for new in range(newest.size + 1):
            for old in range(new + 1):
                found = await get(http, f"/v1/audit/consistency?from={old}&to={new}")
                roots = [base64.b64decode(found[name]) for name in ("from_root", "to_root")]
                path = [base64.b64decode(part) for part in found["proof"]]
                if old:
                    verify_consistency(old, new, *roots, path)
        assert roots[1] == newest.root
        assert (found["origin"], found["from"], found["to"]) == (newest.origin, newest.size, newest.size)
        named = newest.origin.rpartition("/")[2]
        assert await get(http, f"/v1/audit/consistency?from=1&to=2&shard={named}")
        for wrong in ("from=3&to=2", f"from=0&to={newest.size + 99}", "from=1&to=2&shard=1999"):
            assert_problem(await http.get(f"/v1/audit/consistency?{wrong}"), "not-found")


async def test_an_admin_erases_a_message_and_its_parties_find_out(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    async with here.client(here.agents[PLANNER]) as own:
        assert_problem(await own.post(f"/v1/messages/{eid}/erasure", json={}), "forbidden")
    done = await http.post(f"/v1/messages/{eid}/erasure", json={"reason": "ticket 9"})
    assert done.status_code == 200, done.text
    assert any("backups" in place for place in done.json()["survivors"])
    found = await get(http, f"/v1/messages/{eid}")
    assert (found["erased"], found["payload"], found["copies"]) == (True, None, [])
    assert found["events"][-1]["event"] == "message.erased"
    assert found["events"][-1]["trace_id"] == found["trace_ids"][0]
    assert_problem(await http.get(f"/v1/messages/{eid}/raw"), "erased")
    assert (await http.post(f"/v1/messages/{eid}/erasure", json={})).status_code == 200  # once more does nothing
    assert len((await get(http, f"/v1/messages/{eid}"))["events"]) == len(found["events"])
    assert_problem(await http.post(f"/v1/messages/{NOBODY}/erasure", json={}), "not-found")
    await here.sequencer.flush()
    report = await get(http, "/v1/audit/verify")
    assert (report["ok"], report["erased"]) == (True, 2)


async def test_a_legal_hold_covers_what_it_names_or_is_refused(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    asked = {"kind": "message", "subject": "01JD0000000000000000000000", "reason": "case 9"}
    assert_problem(await http.post("/v1/audit/holds", json=asked), "not-found")
    for kind, subject, covers in (("message", f" {eid}", eid), ("agent", "Researcher", RESEARCHER)):
        placed = await http.post("/v1/audit/holds", json={"kind": kind, "subject": subject, "reason": "case 9"})
        assert (placed.status_code, placed.json()["subject"]) == (201, covers)
        assert_problem(await http.post(f"/v1/messages/{eid}/erasure", json={"reason": "asked for"}), "held")
        await http.delete(f"/v1/audit/holds?kind={kind}&subject={covers}")


async def test_a_legal_hold_is_the_admin_s_and_forbids_erasure(here: World, http: httpx.AsyncClient) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    asked = {"kind": "agent", "subject": RESEARCHER.upper(), "reason": "case 7"}
    async with here.client(here.agents[PLANNER]) as own:
        assert_problem(await own.post("/v1/audit/holds", json=asked), "forbidden")
        assert_problem(await own.get("/v1/audit/holds"), "forbidden")
        assert_problem(await own.delete("/v1/audit/holds?kind=agent&subject=x"), "forbidden")
    placed = await http.post("/v1/audit/holds", json=asked)
    assert placed.status_code == 201
    assert placed.json()["subject"] == RESEARCHER
    assert_problem(await http.post("/v1/audit/holds", json=asked), "already-held")
    assert "case 7" in assert_problem(await http.post(f"/v1/messages/{eid}/erasure", json={}), "held")["detail"]
    assert (await get(http, "/v1/audit/holds"))["items"] == [placed.json()]
    place = f"/v1/audit/holds?kind=agent&subject={RESEARCHER}"
    assert (await http.delete(place)).json() == placed.json()
    assert_problem(await http.delete(place), "not-found")
    assert (await http.post(f"/v1/messages/{eid}/erasure", json={})).status_code == 200
    allowed = (await http.put("/v1/audit/holds")).headers["allow"]
    assert allowed == "DELETE, GET, HEAD, POST"


# ── for whoever runs the node ────────────────────────────────────────────────────────────────────────────────────────


async def test_readiness_says_what_is_missing(here: World, http: httpx.AsyncClient) -> None:
    assert await get(http, "/readyz") == {"status": "ready"}
    here.problems.append("the audit log is 31 s behind")
    found = assert_problem(await http.get("/readyz"), "not-ready")
    assert found["problems"] == ["the audit log is 31 s behind"]
    assert await get(http, "/healthz") == {"status": "ok"}


async def test_metrics_are_prometheus_text(http: httpx.AsyncClient) -> None:
    answer = await http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_the_token_of_scrapes_opens_metrics_and_nothing_else(here: World) -> None:
    async with here.client(SCRAPER) as http:
        assert (await http.get("/metrics")).status_code == 200
        for path in ("/v1/messages", "/v1/audit/verification", "/tile/entries/000"):
            assert (await http.get(path)).status_code in (401, 404), path
    async with here.client(here.agents[PLANNER]) as http:
        assert_problem(await http.get("/metrics"), "forbidden")


async def test_the_document_describes_every_path_and_is_the_same_for_an_agent(here: World) -> None:
    async with here.client(here.agents[PLANNER]) as http:
        document = await get(http, "/openapi.json")
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "500" in operation["responses"]
    assert set(document["paths"]["/healthz"]["get"]) & {"security"} == set()
    assert document["paths"]["/metrics"]["get"]["security"] == [{"token": []}]


async def test_no_token_is_ever_part_of_an_answer(here: World, http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/messages?limit=x", headers={"Cookie": f"token={ADMIN}"})
    assert ADMIN not in answer.text


async def test_a_receipt_is_followed_into_a_closed_shard_over_http(here: World) -> None:
    eid = await here.send(PLANNER, RESEARCHER)
    await here.sequencer.flush()
    row = next(found.row for found in await here.store.events_of(eid) if found.row.ev == "message.accepted")
    here.sequencer._sharding = Sharding("1mo")
    async with asyncio.timeout(20):
        while here.sequencer.keys.origin.endswith("2026h1"):
            here.sequencer.wake()
            await asyncio.sleep(0.02)
    await here.sequencer.flush()
    async with here.client(None) as http:

        async def fetch(path: str) -> bytes:
            response = await http.get(f"/{path}")
            assert response.status_code == 200, path
            return response.content

        logs = load_public(here.folder).logs
        for leaf, state in ((leaf_hash(row.leaf), State.INCLUDED), (bytes(32), State.SUPPRESSED)):
            held = Receipt(tlog_receipt.Receipt(eid, leaf, 0, bytes(4), bytes(64)), (), PLANNER, (RESEARCHER,))
            assert (await held.follow(fetch, logs))[0] is state
