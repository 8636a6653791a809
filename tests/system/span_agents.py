"""Agents of the span walk, traced by the stock OpenTelemetry SDK: each function is one thing that agents do.

A program: give it OTEL_*, the node's data folder, and the password that its agents share.
"""

import asyncio
import sys
from contextlib import AsyncExitStack

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

import aimx
from tests.system.conversation import exporter


async def request_and_reply(ada: aimx.AsyncClient, bob: aimx.AsyncClient) -> None:
    """In a span of the agent's own, as real ones have."""

    async def answer() -> None:
        async for question in bob.inbox():
            async with question.process():
                await question.reply({"answer": "BODY-42"})
            return

    answering = asyncio.create_task(answer())
    with trace.get_tracer("agent").start_as_current_span("invoke_agent ada", kind=SpanKind.INTERNAL):
        await ada.request("s1", {"question": "BODY-why"}, subject="SUBJECT-why", workflow="wf-request", timeout=30)
    await answering


async def chain(ada: aimx.AsyncClient, bob: aimx.AsyncClient, cleo: aimx.AsyncClient) -> None:
    """What is sent inside `process` stays in the trace."""
    await ada.send("s1", "BODY-1", subject="SUBJECT-chain", workflow="wf-chain")
    async for message in bob.inbox():
        async with message.process():
            await bob.send("s2", "BODY-2", subject="SUBJECT-on")
        break
    async for message in cleo.inbox():
        await message.ack()
        break


async def refused(ada: aimx.AsyncClient) -> None:
    try:
        await ada.send("s1", "BODY-x", subject="SUBJECT-refused", headers={"X-Refuse": "yes"})
    except aimx.Refused:
        return
    raise AssertionError("it was not refused")


async def rehearsed(ada: aimx.AsyncClient) -> None:
    report = await ada.request("crew", "BODY-x", subject="SUBJECT-dry", trace_only=True, timeout=30)
    assert report.payload["accepted"]


async def main(data: str, password: str) -> None:
    async with AsyncExitStack() as stack:
        ada, bob, cleo = [
            await stack.enter_async_context(aimx.connect(data, agent=f"{name}@fabric.local", password=password))
            for name in ("s0", "s1", "s2")
        ]
        await request_and_reply(ada, bob)
        await chain(ada, bob, cleo)
        await refused(ada)
        await rehearsed(ada)


if __name__ == "__main__":
    provider = TracerProvider(resource=Resource.create({"service.name": "agents"}))
    provider.add_span_processor(BatchSpanProcessor(exporter(), schedule_delay_millis=100))
    trace.set_tracer_provider(provider)
    asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 60))
    provider.shutdown()
