"""A small world for the HTTP tests: a real store and audit log, three agents, messages as intake keeps them."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from aimx.audit import events
from aimx.audit.keys import Keys, load_or_create
from aimx.audit.log import FILE
from aimx.audit.sequencer import Sequencer
from aimx.audit.sqlite import SqliteReader
from aimx.config import Settings
from aimx.identity import tokens
from aimx.message.identifier import new_eid
from aimx.sidecar.app import create_app
from aimx.sidecar.context import SidecarContext
from aimx.store.contract import (
    Agent,
    Credential,
    EventRow,
    NewMessage,
    Outcome,
    Placed,
    SpanRef,
    Target,
)
from aimx.store.sqlite import SqliteStore
from aimx.telemetry import metrics
from aimx.telemetry.span import Tracer
from aimx.tlog.leaf import new_key

ADMIN = "the-admin-token-of-these-tests"
SCRAPER = "scraper"
PLANNER, RESEARCHER, CRITIC = (f"{name}@fabric.local" for name in ("planner", "researcher", "critic"))
TRACE = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736")
SPAN = bytes.fromhex("00f067aa0ba902b7")
BASE = "https://aimx.test"


@dataclass
class World:
    app: FastAPI
    store: SqliteStore
    sequencer: Sequencer
    keys: Keys
    folder: Path
    agents: dict[str, str] = field(default_factory=dict)
    """Tokens by address."""
    problems: list[str] = field(default_factory=list)

    def client(self, token: str | None = ADMIN, **more: Any) -> httpx.AsyncClient:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app), base_url=BASE, headers=headers, timeout=20, **more
        )

    async def send(
        self,
        sender: str,
        *recipients: str,
        payload: bytes = b'{"task": "find sources"}\r\n',
        content_type: str = "application/json",
        answers: str | None = None,
        workflow: str | None = "report-17",
        trace: bytes = TRACE,
        depth: int = 1,
        subject: str = "task",
        facts: dict[str, Any] | None = None,
    ) -> str:
        """A message as intake accepts it, delivered at once or buffered, with its events. Returns its id."""
        now = time.time_ns() // 1_000_000
        eid, key = new_eid(now), new_key()
        header = (
            f"From: {sender}\r\nTo: {recipients[0]}\r\nSubject: {subject}\r\nMessage-ID: <{eid}@fabric.local>\r\n"
            f"Content-Type: {content_type}\r\n\r\n"
        ).encode()
        span = SpanRef(trace, SPAN)
        message = NewMessage(
            eid=eid,
            t_ms=now,
            sender=sender,
            agent=sender,
            recipients=recipients,
            header=header,
            body=payload,
            message_id=f"<{eid}@fabric.local>",
            in_reply_to=f"<{answers}@fabric.local>" if answers else None,
            subject=subject,
            content_type=content_type.partition(";")[0],
            workflow=workflow,
            priority=0,
            origin=span,
            trace_flags=1,
            tracestate="",
            baggage="",
            context_source="header",
            received=span,
            depth=depth,
            loop_key=workflow or trace.hex(),
            payload=sha256(payload).digest(),
            template=sha256(payload).digest(),
        )
        accepted = events.message_accepted(
            events.Stamp("n1", now, span, sender),
            eid=eid,
            key=key,
            data=sha256(header + payload).digest(),
            header=sha256(header).digest(),
            body=sha256(payload).digest(),
            sender=sender,
            recipients=recipients,
            size=len(header) + len(payload),
            facts={"depth": depth, "workflow": workflow, "recipients": list(recipients), **(facts or {})},
        )
        targets = [
            Target(address, address, span, span, next_ms=now + 60_000, deadline_ms=now + 600_000)
            for address in recipients
        ]

        def witness(outcomes: Sequence[Outcome]) -> list[EventRow]:
            return [accepted, *(self._outcome(eid, key, now, span, sender, outcome) for outcome in outcomes)]

        await self.store.accept(message, targets, witness)
        return eid

    def _outcome(self, eid: str, key: bytes, now: int, span: SpanRef, sender: str, outcome: Outcome) -> EventRow:
        stamp = events.Stamp("n1", now, span, sender)
        to = outcome.target.address
        if isinstance(outcome, Placed):
            facts = {"recipient": to, "folder": "INBOX", "uid": outcome.uid, "attempt": 1, "waited_ms": 0}
            return events.delivery_mailbox(
                stamp, message=eid, key=key, recipient=to, box=(to, "INBOX"), uid=outcome.uid, facts=facts
            )
        waits = {"recipient": to, "reason": outcome.reason, "attempt": 1, "next_ms": now + 60_000, "delay_ms": 60_000}
        return events.message_deferred(
            stamp,
            message=eid,
            key=key,
            recipient=to,
            why=outcome.reason,
            attempt=1,
            next_ms=now + 60_000,
            facts=waits,
        )

    async def refuse(self, sender: str, *recipients: str, answers: str, workflow: str = "report-17") -> str:
        """A message that the loop guard refused: only the event knows of it."""
        stamp = events.Stamp("n1", time.time_ns() // 1_000_000, SpanRef(TRACE, SPAN), sender)
        facts = {
            "sender": sender,
            "recipients": list(recipients),
            "rule": "repeats",
            "text": "this agent has said exactly this 6 times (limit 6)",
            "reply": "554 5.4.6",
            "depth": 9,
            "workflow": workflow,
            "in_reply_to": f"<{answers}@fabric.local>",
        }
        row = events.loop_refused(
            stamp, rule="repeats", count=6, by=sender, loop=workflow, recipients=recipients, facts=facts
        )
        await self.store.record([row])
        return row.eid

    async def add_agent(self, address: str, max_unacked: int | None = None) -> None:
        credential = Credential(b"s" * 16, 4096, b"k" * 32, b"v" * 32)
        await self.store.add_agent(Agent(address, credential, 1_780_000_000_000, max_unacked=max_unacked), [])
        token = tokens.new_token()
        await self.store.add_token(tokens.digest(token), address, 1_780_000_000_000, [])
        self.agents[address] = token


@asynccontextmanager
async def world(folder: Path, tracer: Tracer | None = None) -> AsyncIterator[World]:
    settings = Settings(data=folder)
    store = SqliteStore(folder / "mail.db", settings.node)
    await store.open()
    keys = load_or_create(folder, "fabric.local", 1_780_000_000_000)
    tracer = tracer or Tracer()
    sequencer = Sequencer(
        store,
        folder,
        keys,
        node="n1",
        tracer=tracer,
        integrate_within=0.01,
        checkpoint_every=0.02,
        heartbeat_every=3600,
    )
    await sequencer.start()
    reader = SqliteReader(folder / FILE)
    problems: list[str] = []
    context = SidecarContext(
        store=store,
        log=reader,
        keys=keys.public,
        settings=settings,
        is_admin=lambda token: tokens.same(token, ADMIN),
        is_scraper=lambda token: tokens.same(token, SCRAPER),
        metrics=metrics.Metrics().snapshot,
        ready=lambda: problems,
        tracer=tracer,
    )
    made = World(create_app(context), store, sequencer, keys, folder, problems=problems)
    try:
        for address, limit in ((PLANNER, None), (RESEARCHER, None), (CRITIC, 1)):
            await made.add_agent(address, limit)
        yield made
    finally:
        reader.close()
        await sequencer.stop()
        await store.close()


def json_payload(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\r\n"
