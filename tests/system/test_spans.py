"""Every span that real nodes and real agents export, walked by the catalogue.

`SCENARIOS` is what happens; each runs on one node, by SMTP and IMAP or by the SDK. A second node is its peer and its
witness; beside them are somebody's smarthost, LMTP store and webhook. One walk over all that the collector got fails
on an orphan, a wrong parent, link, kind or time, on what the catalogue does not declare, and on an address or a
subject that shows. What each scenario must have left is in its own test.
"""

import asyncio
import json
import smtplib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from email import message_from_bytes
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import ClassVar

import httpx
import pytest
from aiosmtpd.smtp import SMTP
from aiosmtpd.smtp import Envelope as SmtpEnvelope
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aimx.store.sqlite import SqliteStore
from aimx.telemetry.catalogue import SPANS, span_spec
from tests.node_process import Account, NodeProcess, clean_environ
from tests.otlp_receiver import OtlpReceiver, Received, wait_until
from tests.outside import MailServer
from tests.ports import free_port
from tests.protocol.mail_node import PASSWORD, add_agent, address
from tests.receiver import SECRET, Got, Receiver
from tests.system.span_walk import faults

ROOT = Path(__file__).parents[2]
FAST = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
TYPED = "00f067aa0ba902b7"
"""The span id of every traceparent that a scenario types by hand."""
MEMBERS = [f"m{i:02}" for i in range(50)]
NAMES = ["ada", "bob", "cleo", "w0", "w1", "w2", "s0", "s1", "s2", *MEMBERS]
SECRETS = ["@fabric.local", "@outside.example", "@far.example", "SUBJECT-", "BODY-", PASSWORD]
CONFIG = """
listen.peer = "127.0.0.1:{near}"
[relay]
enabled = true
via = "sink"
[relay.sink]
host = "127.0.0.1"
port = {sink}
tls = "none"
[peer.far]
domains = ["far.example"]
ca = {ca}
host = "127.0.0.1"
port = {far}
[lmtp.old]
host = "127.0.0.1"
port = {lmtp}
[webhook.crm]
url = "http://localhost:{hook}/in"
secret = "{secret}"
networks = ["127.0.0.0/8"]
[audit]
witness_every = "300ms"
[audit.witness.far]
url = "{witness}"
vkey = "{vkey}"
ca = {ca}
[delivery]
first_delay = "50ms"
max_delay = "400ms"
jitter = 0.0
deadline = "2s"
[trace]
max_idle = "300ms"  # the fourth attempt comes 400 ms after the third
[pool.workers]
members = ["w0", "w1", "w2"]
[list.crew]
members = {members!r}
[[route]]
name = "no-thanks"
header = {{ X-Refuse = "*" }}
refuse = "not today"
[[route]]
name = "stored"
recipient = "old@*"
to = "lmtp:old"
[[route]]
name = "hooked"
recipient = "hook@*"
to = "webhook:crm"
"""
FAR = """
node = "far"
listen.peer = "127.0.0.1:{far}"
[domain."far.example"]
[peer.near]
domains = ["fabric.local"]
ca = {ca}
host = "127.0.0.1"
port = {near}
[audit.cosign.near]
vkey = "{vkey}"
"""


@dataclass(frozen=True)
class World:
    node: NodeProcess
    far: NodeProcess
    collector: OtlpReceiver

    def who(self, name: str) -> Account:
        return Account(address(name), PASSWORD)

    def send(self, sender: str, to: str, trace: str, **headers: str) -> None:
        """One mail in a trace of the scenario's own. Header names with `_` for `-`."""
        lines = {"From": address(sender), "Subject": f"SUBJECT-{to}", "X-Workflow-ID": f"wf-{trace}"}
        lines |= {"traceparent": f"00-{trace_id(trace)}-{TYPED}-01"} | headers
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value)
        with self.node.smtp(self.who(sender)) as client:
            client.sendmail(address(sender), [address(to)], f"{head}\r\nBODY-{trace}\r\n")

    def spans(self, trace: str) -> list[Received]:
        return self.collector.trace(trace_id(trace))

    def named(self, trace: str, name: str) -> list[Received]:
        return [span for span in self.spans(trace) if span.name == name]


def trace_id(name: str) -> str:
    return name.encode().hex().rjust(32, "a")[-32:]


# ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────────


def pool(world: World) -> None:
    world.send("ada", "workers", "pool")


def list_of_fifty(world: World) -> None:
    world.send("ada", "crew", "list")


def retry_comb_and_rollover(world: World) -> None:
    """Bob takes one at a time: the second waits, attempt after attempt, until the first is acknowledged."""
    with world.node.imap(world.who("bob")) as client:
        world.send("ada", "bob", "full")
        world.send("ada", "bob", "comb")
        wait_until(lambda: any(s.attributes.get("aimx.trace.rollover") for s in attempts(world)), 20)
        client.noop()
        client.store("1:*", "+FLAGS", "($AimxDone)")
    wait_until(lambda: any(span.attributes.get("aimx.outcome") == "delivered" for span in attempts(world)), 20)
    with world.node.imap(world.who("bob")) as client:
        client.store("1:*", "+FLAGS", "($AimxDone \\Deleted)")
        client.expunge()


def attempts(world: World) -> list[Received]:
    """Of `comb`'s delivery, whichever their traces."""
    linked = (trace_id("comb"), TYPED)
    every = [span for span in list(world.collector.spans) if span.name == "deliver mailbox"]
    return [span for span in every if linked in {(link.trace_id, link.span_id) for link in span.links}]


def bounce(world: World) -> None:
    world.send("ada", "cleo", "stuck")
    world.send("ada", "cleo", "bounce")
    wait_until(lambda: bool(dead_letters(world)), 20)
    with world.node.imap(world.who("cleo")) as client:
        client.store("1:*", "+FLAGS", "($AimxDone)")


def dead_letters(world: World) -> list[Received]:
    spans = [span for span in list(world.collector.spans) if span.name == "dead-letter mailbox"]
    return [span for span in spans if trace_id("bounce") in {link.trace_id for link in span.links}]


def pickup_and_ack(world: World) -> None:
    world.send("ada", "w0", "pickup")
    with world.node.imap(world.who("w0")) as client:
        client.fetch("*", "(BODY[])")
        client.store("*", "+FLAGS", "($AimxDone)")


def batch_fetch_and_move(world: World) -> None:
    for number in range(3):
        world.send("ada", "w1", f"batch{number}")
    with world.node.imap(world.who("w1")) as client:
        client.fetch("1:*", "(BODY[])")
        client.copy("1", "Drafts")
        client._simple_command("MOVE", "1:2", "Archive")


def append(world: World) -> None:
    with world.node.imap(world.who("w2")) as client:
        mail = f"traceparent: 00-{trace_id('append')}-{TYPED}-01\r\nSubject: SUBJECT-a\r\n\r\nBODY-a\r\n"
        client.append("Sent", "", None, mail.encode())  # type: ignore[arg-type]
        client.append("Sent", "", None, b"Subject: SUBJECT-b\r\n\r\nBODY-b\r\n")  # type: ignore[arg-type]
        client.select("Sent")
        client.fetch("1", "(BODY[])")
        client.store("1:*", "+FLAGS", "(\\Deleted)")
        client.expunge()


def refused_by_rule(world: World) -> None:
    with pytest.raises(smtplib.SMTPDataError):
        world.send("ada", "bob", "refused", X_Refuse="1")


def refused_recipient(world: World) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        world.send("ada", "nobody", "unknown")


def loop_stopped(world: World) -> None:
    last = ""
    for number in range(13):
        sender, to = ("w0", "w1") if number % 2 == 0 else ("w1", "w0")
        mail = {"Message_ID": f"<loop{number}@x>", "In_Reply_To": last, "traceparent": ""}
        if number == 12:
            with pytest.raises(smtplib.SMTPDataError):
                world.send(sender, to, "loop", **mail)
        else:
            world.send(sender, to, "loop", **mail)
        last = f"<loop{number}@x>"


def dry_run(world: World) -> None:
    world.send("ada", "crew", "dry", X_Trace_Only="yes")


def relayed(world: World) -> None:
    """To a smarthost: a real SMTP server of somebody else's."""
    world.send("ada", "someone@outside.example", "relayed", baggage="secret=1")
    wait_until(lambda: bool(world.named("relayed", "deliver relay")), 20)


def stored(world: World) -> None:
    world.send("ada", "old", "stored")
    wait_until(lambda: bool(world.named("stored", "deliver lmtp")), 20)


def hooked(world: World) -> None:
    """The receiver answers by mail while it is asked, in a span of its own."""
    world.send("ada", "hook", "hooked")
    wait_until(lambda: len(world.named("hooked", "smtp receive")) == 2, 20)
    wait_until(lambda: bool(world.named("hooked", "deliver webhook")), 20)


def over_two_nodes(world: World) -> None:
    """There and back; what answers knows nothing of traces."""
    bob = world.far.add_agent("bob")
    world.send("ada", bob.address, "far", Message_ID="<far@fabric.local>")
    wait_until(lambda: world.far.bodies(bob) != [], 20)
    with world.far.smtp(bob) as client:
        said = "From: bob@far.example\r\nSubject: SUBJECT-re\r\nIn-Reply-To: <far@fabric.local>\r\n\r\nBODY-re\r\n"
        client.sendmail(bob.address, [address("ada")], said)
    wait_until(lambda: len(world.named("far", "deliver mailbox")) == 2, 20)


def witnessed(world: World) -> None:
    wait_until(lambda: bool(cosigned(world)), 20)


def cosigned(world: World) -> list[Received]:
    asked = [span for span in list(world.collector.spans) if span.name == "checkpoint witness"]
    return [span for span in asked if span.attributes["aimx.audit.verdict"] == "cosigned"]


def http(world: World) -> None:
    token = Path(world.node.ready["admin_token_file"]).read_text().strip()
    parent = {"traceparent": f"00-{trace_id('http')}-{TYPED}-01"}
    with httpx.Client(base_url=world.node.ready["http"], verify=world.node.tls()) as client:
        known = client.get(f"/v1/traces/{trace_id('pool')}", headers=parent | {"Authorization": f"Bearer {token}"})
        assert known.status_code == 200
        assert client.get(f"/v1/traces/{trace_id('pool')}", headers=parent).status_code == 401


def agents(world: World) -> None:
    """Request and reply, work inside `process`, a refusal, a dry run: all by the SDK."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.span_agents", str(world.node.data), PASSWORD],
        env=clean_environ({**world.collector.environ, **FAST}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr


SCENARIOS: list[Callable[[World], None]] = [
    pool,
    list_of_fifty,
    retry_comb_and_rollover,
    bounce,
    pickup_and_ack,
    batch_fetch_and_move,
    append,
    refused_by_rule,
    refused_recipient,
    loop_stopped,
    dry_run,
    relayed,
    stored,
    hooked,
    over_two_nodes,
    witnessed,
    http,
    agents,
]


# ── the walk ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Sink:
    """Somebody else's server, outside the trust zone."""

    taken: ClassVar[list[bytes]] = []

    async def handle_DATA(self, server: object, session: object, envelope: SmtpEnvelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.taken.append(envelope.content)
        return "250 2.0.0 taken"


@contextmanager
def smarthost() -> Iterator[int]:
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: SMTP(Sink(), loop=loop), "127.0.0.1", 0))
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


async def enlist(data: Path) -> None:
    store = SqliteStore(data / "mail.db", "test", guest=True)
    await store.open()
    for name in NAMES:
        await add_agent(store, name, max_unacked=1 if name in ("bob", "cleo") else None)
    await store.close()


def answering(node: NodeProcess, endpoint: str) -> Callable[[Got], None]:
    """Somebody's webhook with OpenTelemetry in it: it continues the trace, and answers by plain mail."""
    provider = TracerProvider(resource=Resource.create({"service.name": "agents"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint, insecure=True)))
    tracer, w3c = provider.get_tracer("hook"), TraceContextTextMapPropagator()

    def work(got: Got) -> None:
        with tracer.start_as_current_span("POST /in", w3c.extract(got.headers), SpanKind.SERVER):
            head: dict[str, str] = {"From": address("s2"), "Subject": "SUBJECT-hook"}
            w3c.inject(head)
            lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            with node.smtp(Account(address("s2"), PASSWORD)) as client:
                client.sendmail(address("s2"), [address("ada")], f"{lines}\r\nBODY-hook\r\n")

    return work


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All scenarios have run, the nodes have stopped, the collector has everything."""
    folder = tmp_path_factory.mktemp("spans")
    with ExitStack() as outside:
        collector = outside.enter_context(OtlpReceiver("grpc"))
        hook = outside.enter_context(Receiver().listening())
        ports = {"near": free_port(), "far": free_port(), "hook": hook.port}
        ports |= {"sink": outside.enter_context(smarthost())}
        ports |= {"lmtp": outside.enter_context(MailServer(lmtp=True).in_thread()).port}
        environ = {**collector.environ, **FAST}
        near = NodeProcess(folder / "near", environ=environ)
        far = NodeProcess(folder / "far", """node = "far"\n[domain."far.example"]\n""", environ)
        with near:  # each has its keys then, for the other to be told
            asyncio.run(enlist(near.data))
        with far:
            pass
        log = (near.data / "audit.vkeys").read_text().split()[0]
        far.configure(FAR.format(**ports, ca=json.dumps(near.ready["ca"]), vkey=log))
        with far:
            witness, ca = (far.data / "witness.vkey").read_text().strip(), json.dumps(far.ready["ca"])
            away = {"witness": far.ready["http"], "vkey": witness, "ca": ca, "secret": SECRET}
            near.configure(CONFIG.format(**ports, **away, members=MEMBERS))
            with near:
                hook.work = answering(near, collector.endpoint)
                made = World(near, far, collector)
                for scenario in SCENARIOS:
                    scenario(made)
        yield made


def test_nothing_is_wrong_with_any_span(world: World) -> None:
    assert len(world.collector.spans) > 300
    found = faults(world.collector.spans, foreign={TYPED}, secrets=SECRETS)
    assert not found, f"{len(found)} faults:\n" + "\n".join(found)


def test_the_walk_sees_what_is_wrong(world: World) -> None:
    """Else the test above proves nothing."""
    spans = world.collector.spans
    whole = [span for span in spans if span.trace_id == trace_id("pool")]
    route = next(span for span in whole if span.name.startswith("route"))
    orphaned = [span for span in whole if span is not route]
    assert any("orphan" in fault for fault in faults(orphaned, foreign={TYPED}))
    wrong = {
        "is CLIENT": {"kind": "CLIENT"},
        "ends before": {"end_ns": route.start_ns - 1},
        "not in the catalogue": {"name": "routing of ada"},
        "tells 'ada@": {"attributes": {"aimx.route.rule": "ada@x"}},
        "does not give it": {"attributes": {"aimx.unheard_of": 1}},
        "before its parent": {"start_ns": route.start_ns - 10**9},
        "after its parent": {"end_ns": route.end_ns + 10**9},
        "hangs under": {"parent_id": next(span.span_id for span in whole if span.name == "mailbox append")},
        "without error.type": {"error": True},
    }
    for says, change in wrong.items():
        found = faults([*orphaned, replace(route, **change)], foreign={TYPED}, secrets=["ada@"])  # type: ignore[arg-type]
        assert any(says in fault for fault in found), (says, found)


# ── what each has left ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_is_one_route_to_one_member(world: World) -> None:
    (route,) = world.named("pool", "route recipient")
    (deliver,) = world.named("pool", "deliver mailbox")
    assert (route.attributes["aimx.route.decision"], route.attributes["messaging.destination.name"]) == (
        "pool",
        "workers",
    )
    assert deliver.attributes["messaging.destination.name"] == "workers"
    assert deliver.parent_id == route.span_id


def test_a_list_of_fifty_is_one_route_and_fifty_deliveries(world: World) -> None:
    (route,) = world.named("list", "route recipient")
    delivers = world.named("list", "deliver mailbox")
    assert len(delivers) == len(world.named("list", "mailbox append")) == 50
    assert {span.parent_id for span in delivers} == {route.span_id}
    assert {span.attributes["messaging.destination.name"] for span in delivers} == {"crew"}


def test_retries_are_a_comb_and_a_late_one_begins_a_trace(world: World) -> None:
    comb = sorted(attempts(world), key=lambda span: span.attributes["aimx.delivery.attempt"])
    assert [span.attributes["aimx.delivery.attempt"] for span in comb] == list(range(1, len(comb) + 1))
    (enqueue,) = world.named("comb", "enqueue mailbox")
    inside = [span for span in comb if span.trace_id == trace_id("comb")]
    assert len(inside) >= 3
    assert {span.parent_id for span in inside} == {enqueue.span_id}
    for earlier, later in pairwise(comb):
        assert earlier.error
        assert [event.name for event in earlier.events] == ["retry.scheduled"]
        assert (earlier.trace_id, earlier.span_id) in {(link.trace_id, link.span_id) for link in later.links}
        assert later.start_ns > earlier.end_ns
    late = [span for span in comb if span.trace_id != trace_id("comb")]
    assert late
    assert all(span.attributes["aimx.trace.rollover"] for span in late)
    assert all(not span.parent_id for span in late)
    assert comb[-1].attributes["aimx.outcome"] == "delivered"


def test_a_bounce_is_one_trace_with_its_notice(world: World) -> None:
    (dead,) = dead_letters(world)
    assert dead.error
    notices = [span for span in world.collector.spans if span.parent_id == dead.span_id]
    assert {"deliver mailbox", "audit append"} <= {span.name for span in notices}


def test_pickup_and_acknowledgement_hang_under_the_creation_context(world: World) -> None:
    (fetch,), (store,) = world.named("pickup", "imap fetch"), world.named("pickup", "imap store")
    assert fetch.parent_id == store.parent_id == TYPED
    assert fetch.attributes["aimx.pickup.latency"] >= 0
    assert store.attributes["aimx.ack"] is True


@pytest.mark.parametrize(("name", "count"), [("imap fetch", 3), ("imap move", 2)])
def test_a_batch_is_a_root_with_links(world: World, name: str, count: int) -> None:
    batch = {trace_id(f"batch{number}") for number in range(3)}
    found = [s for s in world.collector.spans if s.name == name and len({k.trace_id for k in s.links} & batch) == count]
    assert found
    assert all(not span.parent_id for span in found)
    assert all(span.attributes["messaging.batch.message_count"] >= count for span in found)


def test_an_appended_message_keeps_its_trace_or_begins_one(world: World) -> None:
    (kept,) = world.named("append", "imap append")
    assert kept.parent_id == TYPED
    assert [span.parent_id for span in world.named("append", "imap fetch")] == [TYPED]
    assert [span for span in world.collector.spans if span.name == "imap append" and not span.parent_id]


def test_refusals_are_errors_where_they_were_made(world: World) -> None:
    (rule,) = world.named("refused", "route no-thanks")
    (receive,) = world.named("refused", "smtp receive")
    assert (rule.error, rule.parent_id) == (True, receive.span_id)
    assert receive.attributes["smtp.response.status_code"] == 550
    turned_away = [span for span in world.collector.spans if "smtp.recipient_refused" in {e.name for e in span.events}]
    assert turned_away
    stopped = [span for span in world.collector.spans if "loop.refused" in {event.name for event in span.events}]
    assert [span.attributes["aimx.loop.rule"] for span in stopped] == ["repeats"]


def test_a_dry_run_is_decided_and_delivers_only_its_report(world: World) -> None:
    (receive,), (route,) = world.named("dry", "smtp receive"), world.named("dry", "route recipient")
    assert receive.attributes["aimx.trace_only"] is route.attributes["aimx.trace_only"] is True
    assert [span.parent_id for span in world.named("dry", "deliver mailbox")] == [receive.span_id]


def test_a_request_and_its_reply_hang_under_the_agents_own_span(world: World) -> None:
    (task,) = [span for span in world.collector.spans if span.name == "invoke_agent ada"]
    spans = world.collector.trace(task.trace_id)
    sends = [span for span in spans if span.name == "send"]
    (process,) = [span for span in spans if span.name == "process"]
    assert [span.parent_id for span in sends] == [task.span_id, process.span_id]
    assert process.parent_id == sends[0].span_id
    assert process.links, "to the hop that brought it"
    receives = [span for span in spans if span.name == "smtp receive"]
    assert [span.parent_id for span in receives] == [span.span_id for span in sends]
    assert [span for span in spans if span.name == "ack" and span.parent_id == process.span_id]


def test_a_relayed_mail_is_a_dialogue_under_its_delivery(world: World) -> None:
    (enqueue,), (deliver,) = world.named("relayed", "enqueue sink"), world.named("relayed", "deliver relay")
    (relay,) = world.named("relayed", "relay sink")
    assert (deliver.parent_id, relay.parent_id) == (enqueue.span_id, deliver.span_id)
    assert relay.attributes["smtp.response.status_code"] == 250
    assert relay.attributes["server.address"] == "127.0.0.1"
    mail = message_from_bytes(Sink.taken[-1])
    assert trace_id("relayed") in str(mail["traceparent"])
    assert [name for name in mail if name.lower().startswith("aimx-") or name.lower() == "baggage"] == []


def test_a_mail_for_a_store_is_a_dialogue_under_its_delivery(world: World) -> None:
    (deliver,), (talk,) = world.named("stored", "deliver lmtp"), world.named("stored", "lmtp old")
    assert (talk.parent_id, talk.attributes["smtp.response.status_code"]) == (deliver.span_id, 250)
    assert deliver.attributes["aimx.outcome"] == "delivered"


def test_a_webhook_goes_on_in_the_trace_and_so_does_what_it_sends(world: World) -> None:
    (deliver,), (request,) = world.named("hooked", "deliver webhook"), world.named("hooked", "webhook crm")
    assert (request.parent_id, request.attributes["http.response.status_code"]) == (deliver.span_id, 204)
    (theirs,) = world.named("hooked", "POST /in")
    assert theirs.parent_id == request.span_id
    _, answer = world.named("hooked", "smtp receive")
    assert answer.parent_id == theirs.span_id


def test_two_nodes_are_one_trace_there_and_back(world: World) -> None:
    receives = world.named("far", "smtp receive")
    there, back = (world.named("far", f"relay {node}") for node in ("far", "near"))
    assert len(there) == len(back) == 1
    handed = {there[0].span_id, back[0].span_id}
    assert handed <= {span.parent_id for span in receives}, "each reception hangs under the other's hand-over"
    assert len(receives) == 4


def test_each_hand_over_of_a_checkpoint_is_a_trace_of_its_own(world: World) -> None:
    done = cosigned(world)
    assert {(span.parent_id, span.attributes["aimx.audit.witness"]) for span in done} == {("", "far")}
    assert {span.attributes["http.response.status_code"] for span in done} == {200}


def test_an_http_request_continues_only_a_known_callers_trace(world: World) -> None:
    found = [span for span in world.collector.spans if span.name == "http getTrace"]
    known, stranger = sorted(found, key=lambda span: span.start_ns)
    assert (known.trace_id, known.parent_id) == (trace_id("http"), TYPED)
    assert not stranger.parent_id
    assert [link.trace_id for link in stranger.links] == [trace_id("http")]


def test_every_span_of_the_catalogue_was_seen(world: World) -> None:
    """A new one needs a scenario."""
    seen = {spec.name for span in world.collector.spans if (spec := span_spec(span.name)) is not None}
    assert {spec.name for spec in SPANS} == seen
