"""What waits is delivered once, the urgent first, over failures, restarts and rivals; else its sender is told."""

import asyncio
import dataclasses
import itertools
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aimx.config import Settings
from aimx.delivery.mailbox import MailboxTransport
from aimx.delivery.queue import Queue
from aimx.identity.agents import Directory
from aimx.intake.envelope import Envelope, Reply
from aimx.intake.intake import Intake
from aimx.intake.report import Reporter
from aimx.message.header import HeaderBlock
from aimx.store.contract import Row, Unavailable
from aimx.store.sqlite import SqliteStore, bodies
from aimx.telemetry import logs
from aimx.telemetry.catalogue import COMMON, span_spec
from aimx.telemetry.context import Context
from aimx.telemetry.span import Tracer
from aimx.tlog.tree import leaf_hash
from tests.protocol.mail_node import Spans, add_agent, address

QUICK = {"delivery": {"first_delay": "20ms", "max_delay": "60ms", "jitter": 0.0, "lease": "200ms"}}
KEY = b"k" * 32


class Flaky:
    """A store some of whose calls fail, `failing[name]` times each."""

    def __init__(self, store: SqliteStore, failing: dict[str, int] | None = None) -> None:
        self._store = store
        self.failing = failing or {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if name == "subscribe":
            return call

        async def asked(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self.failing.get(name, 0) > 0:
                self.failing[name] -= 1
                raise Unavailable("not now")
            return await call(*args, **kwargs)

        return asked


class World:
    """Store, intake and queue without doors."""

    def __init__(self, settings: Settings, store: SqliteStore) -> None:
        self.settings, self.store, self.spans = settings, store, Spans()
        self.flaky = Flaky(store)
        self.tracer = Tracer(self.spans)
        self.directory = Directory(store, settings.domains)
        self.lag = 0.0
        self.intake = Intake(
            settings,
            self.flaky,  # type: ignore[arg-type]
            self.directory,
            self.tracer,
            message_id_key=KEY,
            outbox_age=lambda: self.lag,
        )

    def queue(self) -> Queue:
        store: Any = self.flaky
        reporter = Reporter(self.settings, store, self.directory, KEY)
        mailbox = MailboxTransport(store, self.settings.node)
        return Queue(self.settings, store, {"mailbox": mailbox}, self.tracer, reporter)

    async def send(self, sender: str, to: Sequence[str], *headers: str, body: bytes = b"x\r\n") -> Reply:
        upload = self.intake.upload()
        upload.write("".join(f"{line}\r\n" for line in [f"From: {address(sender)}", *headers, ""]).encode())
        for at in range(0, len(body), 100_000):
            upload.write(body[at : at + 100_000])
            if upload.full:
                await upload.spill()
        recipients = tuple(address(name) for name in to)
        return await self.intake.accept(
            Envelope(address(sender), address(sender), recipients, upload, "127.0.0.1:1", "me", "ESMTPSA", "TLSv1.3", 1)
        )

    async def inbox(self, agent: str) -> list[Row]:
        mailbox = await self.store.mailbox(address(agent), "INBOX")
        assert mailbox is not None
        return await self.store.fetch(mailbox.key, ((1, 2**32 - 1),), header=True, body=2**20)

    async def free(self, agent: str) -> None:
        """Acknowledge everything in the INBOX."""
        mailbox = await self.store.mailbox(address(agent), "INBOX")
        assert mailbox is not None
        await self.store.mark(mailbox.key, ((1, 2**32 - 1),), "add", frozenset({"$AimxDone"}), lambda flagged: [])

    async def unlimited(self, agent: str) -> None:
        found = await self.store.agent(address(agent))
        assert found is not None
        await self.store.update_agent(dataclasses.replace(found, max_unacked=None, quota=None), [])

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(15):
            while not await condition():
                await asyncio.sleep(0.005)

    async def nothing_waits(self) -> bool:
        return not await self.store.pending()


@asynccontextmanager
async def world(folder: Path, agents: Sequence[str] = (), **settings: Any) -> AsyncIterator[World]:
    store = SqliteStore(folder / "mail.db", "n1")
    await store.open()
    try:
        for name in agents:
            await add_agent(store, name)
        yield World(Settings.model_validate(QUICK | settings), store)
    finally:
        await store.close()


@asynccontextmanager
async def working(queue: Queue) -> AsyncIterator[Queue]:
    queue.start()
    try:
        yield queue
    finally:
        await queue.stop()


def subjects(rows: Sequence[Row]) -> list[str | None]:
    return [HeaderBlock.parse(row.header or b"")[0].get("Subject") for row in rows]


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_what_is_due_the_urgent_comes_first(tmp_path: Path) -> None:
    async with world(tmp_path, delivery=QUICK["delivery"] | {"concurrency": 1}) as w:
        await add_agent(w.store, "vip", may_prioritise=True)
        await add_agent(w.store, "bob", quota=1)
        for priority in (-3, 0, 9, 4, 9):
            await w.send("vip", ["bob"], f"MT-Priority: {priority}", f"Subject: {priority}")
        await w.unlimited("bob")
        await asyncio.sleep(0.03)  # until all are due
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        assert subjects(await w.inbox("bob")) == ["9", "9", "4", "0", "-3"]


async def test_no_more_is_taken_than_can_be_begun(tmp_path: Path) -> None:
    """What is taken is out of the reach of whatever more urgent comes in, and of other nodes."""
    async with world(tmp_path, ["ada"], delivery=QUICK["delivery"] | {"concurrency": 2}) as w:
        await add_agent(w.store, "bob", quota=1)
        for _ in range(12):
            await w.send("ada", ["bob"])
        await w.unlimited("bob")
        await asyncio.sleep(0.03)
        queue = w.queue()
        taken = []
        async with working(queue):
            while await w.store.pending():
                taken.append(len(queue._working))
                await asyncio.sleep(0)
        assert max(taken) <= 2
        assert len(await w.inbox("bob")) == 12


async def test_an_idle_queue_writes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"], delivery={"first_delay": "1h"}) as w:
        await add_agent(w.store, "bob", quota=1)
        async with working(w.queue()):
            for _ in range(5):
                await w.send("ada", ["bob"])
        assert "claim" not in w.flaky.calls


# ── once ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_rivals_deliver_each_message_once(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"]) as w:
        await add_agent(w.store, "bob", quota=1)
        for n in range(60):
            await w.send("ada", ["bob"], f"Subject: {n}")
        await w.unlimited("bob")
        async with working(w.queue()), working(w.queue()), working(w.queue()):
            await w.until(w.nothing_waits)
        assert sorted(map(int, filter(None, subjects(await w.inbox("bob"))))) == list(range(60))


async def test_who_died_between_claim_and_attempt_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"]) as w:
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"])
        await w.unlimited("bob")
        await asyncio.sleep(0.03)
        (due,) = await w.store.claim(time.time_ns() // 1_000_000, 10, "n1/0", 3_600_000, lambda attempt: 20)
        assert due.attempt == 2
        assert (await w.store.pending())[0].attempt == 2, "the next attempt is stored before this one is made"
    async with world(tmp_path) as w, working(w.queue()):
        await w.until(w.nothing_waits)
        assert len(await w.inbox("bob")) == 1


async def test_a_rivals_lease_that_ran_out_is_taken_over(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"]) as w:
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"])
        await w.unlimited("bob")
        await asyncio.sleep(0.03)
        claimed = await w.store.claim(time.time_ns() // 1_000_000, 10, "dead", 150, lambda attempt: 20)
        assert len(claimed) == 1
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        assert len(await w.inbox("bob")) == 1


@pytest.mark.parametrize("step", ["next_due", "claim", "place"])
async def test_a_store_that_cannot_serve_costs_only_time(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimx.delivery.queue.AFTER_FAILURE", 0.02)
    async with world(tmp_path, ["ada"]) as w:
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"])
        await w.unlimited("bob")
        w.flaky.failing = {step: 3}
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        assert len(await w.inbox("bob")) == 1
        assert w.flaky.failing[step] == 0


async def test_a_stop_finishes_the_attempts_in_hand(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"]) as w:
        await add_agent(w.store, "bob", quota=1)
        for _ in range(5):
            await w.send("ada", ["bob"])
        await w.unlimited("bob")
        await asyncio.sleep(0.03)
        queue = w.queue()
        queue.start()
        await w.until(lambda: _called(w, "place"))
        await queue.stop()
        assert not queue._working
        delivered, waiting = await w.inbox("bob"), await w.store.pending()
        assert len(delivered) + len(waiting) == 5


async def _called(w: World, name: str) -> bool:
    return name in w.flaky.calls


# ── those who cannot be reached ──────────────────────────────────────────────────────────────────────────────────────


async def test_an_agent_removed_while_its_mail_waits(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"]) as w:
        await add_agent(w.store, "bob", quota=1)
        reply = await w.send("ada", ["bob"], "Subject: lost", "X-Workflow-ID: =?utf-8?b?dw0KWC1JbmplY3RlZDogMQ==?=")
        await w.store.remove_agent(address("bob"), [])
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        (report,) = await w.inbox("ada")
        assert b"Status: 5.1.1" in (report.body or b"")
        header = HeaderBlock.parse(report.header or b"")[0]
        assert "X-Injected" not in header
        events = [event.row for event in await w.store.events_of(reply.text[1:27])]
        assert [row.ev for row in events] == [
            "message.accepted",
            "message.deferred",
            "message.deferred",
            "message.bounced",
        ]
        assert events[1].detail["next_ms"] is not None
        assert events[2].detail["next_ms"] is None, "nobody will try again"


async def test_a_report_to_a_busy_sender_waits_like_any_mail_and_ends_without_a_report(tmp_path: Path) -> None:
    async with world(tmp_path, delivery=QUICK["delivery"] | {"deadline": "150ms"}) as w:
        await add_agent(w.store, "ada", quota=1)
        await add_agent(w.store, "bob", quota=1)
        reply = await w.send("ada", ["bob"])
        assert reply.accepted
        async with working(w.queue()):
            await w.until(lambda: _bounces(w, 2))
            await w.until(w.nothing_waits)
        assert await w.inbox("ada") == []
        assert await w.inbox("bob") == []
        names = [span.name for span in w.spans]
        assert names.count("dead-letter mailbox") == 2
        bounced = [event.row for event in await w.store.events_after(0, 100) if event.row.ev == "message.bounced"]
        assert bounced[0].detail["dsn"] == bounced[1].ref
        assert bounced[1].detail["dsn"] is None


async def test_a_report_to_a_busy_sender_comes_when_it_is_free_again(tmp_path: Path) -> None:
    async with world(tmp_path, delivery=QUICK["delivery"] | {"deadline": "300ms"}) as w:
        await add_agent(w.store, "ada", quota=1)
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"])
        async with working(w.queue()):
            await w.until(lambda: _bounces(w, 1))
            await w.unlimited("ada")
            await w.until(w.nothing_waits)
        assert len(await w.inbox("ada")) == 1


async def _bounces(w: World, n: int) -> bool:
    found = [event for event in await w.store.events_after(0, 1000) if event.row.ev == "message.bounced"]
    return len(found) >= n


async def test_a_report_that_cannot_be_stored_is_made_later_and_once(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"], delivery=QUICK["delivery"] | {"deadline": "30ms"}) as w:
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"])
        w.flaky.failing = {"accept": 3, "header": 1}
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        assert len(await w.inbox("ada")) == 1


async def test_a_report_about_a_member_says_to_whom_the_sender_wrote(tmp_path: Path) -> None:
    pool = {"work": {"members": ["bob"]}}
    async with world(tmp_path, ["ada"], delivery=QUICK["delivery"] | {"deadline": "30ms"}, pool=pool) as w:
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["work"])
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        (report,) = await w.inbox("ada")
        assert b"you wrote to work@fabric.local" in (report.body or b"")


async def test_a_failure_of_ours_ends_with_a_report_too(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"], delivery=QUICK["delivery"] | {"deadline": "100ms", "lease": "50ms"}) as w:
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"])
        queue = w.queue()
        queue._transports = {}
        async with working(queue):
            await w.until(w.nothing_waits)
        (report,) = await w.inbox("ada")
        assert b"the node failed at it" in (report.body or b"")


async def test_a_sender_who_is_gone_gets_no_report(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada"], delivery=QUICK["delivery"] | {"deadline": "30ms"}) as w:
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"])
        await w.store.remove_agent(address("ada"), [])
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        (bounced,) = [event.row for event in await w.store.events_after(0, 100) if event.row.ev == "message.bounced"]
        assert bounced.detail["dsn"] is None


# ── the trace ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_attempt_after_a_long_silence_begins_a_linked_trace(tmp_path: Path) -> None:
    slow = QUICK["delivery"] | {"first_delay": "120ms", "max_delay": "120ms"}
    async with world(tmp_path, ["ada"], delivery=slow, trace={"max_idle": "60ms"}) as w:
        await add_agent(w.store, "bob", quota=1)
        trace, span = os.urandom(16), os.urandom(8)
        reply = await w.send("ada", ["bob"], f"traceparent: 00-{trace.hex()}-{span.hex()}-01")
        await w.unlimited("bob")
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        first, second = w.spans.named("deliver mailbox")
        assert first.trace_id == trace
        assert second.parent is None
        assert second.trace_id != trace
        assert second.attributes["aimx.trace.rollover"] is True
        linked = [(context.trace_id, context.span_id) for context, _ in second.links or []]
        assert linked == [(trace, span), (trace, first.span_id)]
        assert await w.store.traces_of(reply.text[1:27]) == [trace, second.trace_id]


async def test_spans_say_what_the_catalogue_promises(tmp_path: Path) -> None:
    pool, brief = {"work": {"members": ["ada"]}}, QUICK["delivery"] | {"deadline": "10ms"}
    async with world(tmp_path, ["ada"], loop={"warn_depth": 1}, delivery=brief, pool=pool) as w:
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"])
        await w.send("ada", ["bob"], "Sender: bob@fabric.local")
        await w.send("ada", ["work"])
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        leaves = {leaf_hash(event.row.leaf).hex()[:16]: event.row for event in await w.store.events_after(0, 100)}
        appended = w.spans.named("audit append")
        assert len(appended) >= 5
        for span in appended:
            assert span.attributes["aimx.audit.event"] == leaves[str(span.attributes["aimx.audit.leaf"])].ev
        assert w.spans.named("route recipient")[0].attributes["aimx.loop.verdict"] == "warn"
        receive = w.spans.named("smtp receive")[0].attributes
        assert (receive["aimx.loop.rule"], receive["aimx.loop.count"], receive["aimx.loop.limit"]) == ("depth", 1, 1)
        for span in w.spans:
            spec = span_spec(span.name)
            assert spec is not None
            assert span.attributes.keys() <= {*spec.attributes, *COMMON}, span.name


async def test_who_samples_by_parent_gets_all_spans_of_a_message_or_none(tmp_path: Path) -> None:
    def by_parent(trace_id: bytes, parent: Context | None) -> bool:
        return parent is None or parent.sampled

    async with world(tmp_path, ["ada"]) as w:
        w.tracer.sampler = by_parent
        await add_agent(w.store, "bob", quota=1)
        await w.send("ada", ["bob"], f"traceparent: 00-{'1' * 32}-{'2' * 16}-00")
        await w.unlimited("bob")
        async with working(w.queue()):
            await w.until(w.nothing_waits)
        assert [span.name for span in w.spans] == []


# ── coming in ────────────────────────────────────────────────────────────────────────────────────────────────────────

LARGE = b"y" * 70 + b"\r\n"


async def parts_left(w: World) -> int:
    return len(await w.store._reader.far(bodies.unused))


@pytest.mark.parametrize("size", [10, 10_000], ids=["small", "staged"])
@pytest.mark.parametrize("step", ["stage", "lineage", "accept"])
async def test_what_could_not_be_stored_is_refused_for_now_and_leaves_nothing(
    tmp_path: Path, step: str, size: int
) -> None:
    async with world(tmp_path, ["ada", "bob"]) as w:
        w.flaky.failing = {step: 1}
        if step == "stage" and size > 1000:
            with pytest.raises(Unavailable):
                await w.send("ada", ["bob"], body=LARGE * size)
        elif step != "stage":
            reply = await w.send("ada", ["bob"], body=LARGE * size)
            assert (reply.code, reply.enhanced) == (451, "4.3.0")
            receive = w.spans.one("smtp receive")
            assert receive.error_type == "4.3.0"
        assert await w.inbox("bob") == []
        assert await parts_left(w) == 0
        assert (await w.send("ada", ["bob"], body=LARGE * size)).accepted
        assert len(await w.inbox("bob")) == 1


@pytest.mark.parametrize("headers", [["Sender: bob@fabric.local"], ["X-Agent-ID: bob"]])
async def test_a_large_message_refused_late_leaves_no_parts(tmp_path: Path, headers: list[str]) -> None:
    async with world(tmp_path, ["ada", "bob"]) as w:
        assert (await w.send("ada", ["bob"], *headers, body=LARGE * 10_000)).code == 550
        assert await parts_left(w) == 0


async def test_a_refusal_that_cannot_be_recorded_is_not_made(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada", "bob"]) as w:
        w.flaky.failing = {"record": 1}
        assert (await w.send("ada", ["bob"], "Sender: bob@fabric.local")).code == 451
        assert (await w.send("ada", ["bob"], "Sender: bob@fabric.local")).code == 550


async def test_a_recipient_that_cannot_be_looked_up_is_refused_for_now(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada", "bob"]) as w:
        w.directory._store = w.flaky  # type: ignore[assignment]
        w.flaky.failing = {"agent": 1}
        first = await w.intake.check_recipient(address("bob"))
        assert first is not None
        assert first.code == 451
        assert await w.intake.check_recipient(address("bob")) is None


async def test_a_refusal_is_logged_with_its_trace_and_none_of_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, ["ada", "bob"]) as w:
        with caplog.at_level(logging.INFO, "aimx.intake"):
            await w.send("ada", ["bob"], "Sender: bob@fabric.local", "Subject: very secret")
            w.flaky.failing = {"accept": 1}
            await w.send("ada", ["bob"], "Subject: very secret")
        refused, failed = (record for record in caplog.records if record.name == "aimx.intake")
        for record, span in zip((refused, failed), w.spans.named("smtp receive"), strict=True):
            line = json.loads(logs.JsonFormatter().format(record))
            assert (line["trace_id"], line["span_id"]) == (span.trace_id.hex(), span.span_id.hex())
            assert "secret" not in json.dumps(line)
        assert (refused.levelname, failed.levelname) == ("INFO", "WARNING")


async def test_long_payloads_that_begin_alike_are_not_the_same(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada", "bob"]) as w:
        for n, tail in itertools.product(range(9), (b"a", b"b")):
            reply = await w.send(
                *(("ada", ["bob"]) if tail == b"a" else ("bob", ["ada"])),
                f"Message-ID: <{n}{tail.decode()}@x>",
                f"In-Reply-To: <{n}a@x>" if tail == b"b" else f"In-Reply-To: <{n - 1}b@x>",
                body=LARGE * 4000 + b"chapter " + bytes([97 + n]) * 9 + b"\r\n",
            )
            assert reply.accepted, reply


async def test_while_the_log_is_behind_nothing_is_taken(tmp_path: Path) -> None:
    async with world(tmp_path, ["ada", "bob"]) as w:
        w.lag = 31.0
        reply = await w.send("ada", ["bob"], body=LARGE * 10_000)
        assert (reply.code, reply.enhanced) == (451, "4.3.2")
        assert await parts_left(w) == 0
        w.lag = 29.0
        assert (await w.send("ada", ["bob"])).accepted


async def test_what_fails_after_the_commit_does_not_unsay_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, ["ada", "bob"]) as w:

        def broken(*args: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr("aimx.delivery.trace.end", broken)
        assert (await w.send("ada", ["bob"], body=LARGE * 10_000)).accepted
        assert len(await w.inbox("bob")) == 1


async def test_a_thousand_recipients_are_one_commit_and_one_body(tmp_path: Path) -> None:
    names = [f"agent-with-a-rather-long-name-{n:04d}" for n in range(1000)]
    async with world(tmp_path, ["ada"]) as w:
        for name in names:
            await add_agent(w.store, name)
        reply = await w.send("ada", names)
        assert reply.accepted
        assert w.flaky.calls.count("accept") == 1
        assert len(await w.inbox(names[0])) == len(await w.inbox(names[-1])) == 1
        rows = [event.row for event in await w.store.events_of(reply.text[1:27])]
        assert len(rows) == 1001
        assert max(len(row.leaf) for row in rows) < 65_536
