"""Two agents in one process of their own, traced by the stock OpenTelemetry SDK: a question, its answer, both done.

A program: give it OTEL_* and two `aimx://` URLs. It prints the trace id and both messages' ids as JSON.
"""

import asyncio
import json
import os
import sys

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

import aimx


def exporter() -> SpanExporter:
    if os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(insecure=True)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()


async def main(planner_url: str, critic_url: str) -> dict[str, str]:
    async with aimx.connect(planner_url) as planner, aimx.connect(critic_url) as critic:
        sent = await planner.send("critic", {"draft": 1}, workflow="wf-talk")
        async for question in critic.inbox():
            async with question.process():
                answer = await question.reply({"verdict": "good"})
            break
        async for message in planner.inbox():
            await message.ack()
            break
        return {"trace_id": sent.trace_id, "question": sent.id, "answer": answer.id}


if __name__ == "__main__":
    provider = TracerProvider(resource=Resource.create({"service.name": "agents"}))
    provider.add_span_processor(BatchSpanProcessor(exporter(), schedule_delay_millis=100))
    trace.set_tracer_provider(provider)
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
    provider.shutdown()
