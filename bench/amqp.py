"""`python -m bench.amqp load|paced`: what a Python program does with RabbitMQ, on aio-pika and uvloop.

Says `ready` once connected, begins at the first line it reads, and prints one JSON object: milliseconds until each
confirm (`ms`) and, paced, until each message was with a consumer that waits for it (`body_ms`).
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from typing import Any

import aio_pika
import uvloop
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage


async def main(options: argparse.Namespace) -> None:
    paced = options.mode == "paced"
    url = f"amqp://guest:guest@127.0.0.1:{options.port}/"
    connections = [await aio_pika.connect(url) for _ in range(options.connections)]
    channels = [await one.channel(publisher_confirms=True) for one in connections]
    names = [f"box{n:03d}{'-idle' if paced else ''}" for n in range(10 if paced else options.queues)]
    queues = [await channels[0].declare_queue(name, durable=True) for name in names]
    waits: list[float] = []
    body_waits: list[float] = []
    enough = asyncio.Event()

    async def consumed(message: AbstractIncomingMessage) -> None:
        body_waits.append((time.time() - float(message.headers["due"])) * 1000)  # type: ignore[arg-type]
        await message.ack()
        if len(body_waits) == options.count:
            enough.set()

    if paced:
        reading = await (await aio_pika.connect(url)).channel()
        for queue in queues:
            await (await reading.get_queue(queue.name)).consume(consumed)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    numbers = itertools.count()
    body = b"x" * (options.size - 200)  # headers and all, as large as the mail
    first_at = time.time()

    async def publish(exchange: AbstractExchange) -> None:
        while (n := next(numbers)) < options.count:
            due = first_at + n / options.rate if paced else time.time()
            await asyncio.sleep(max(0.0, due - time.time()) if paced else 0)
            headers: Any = {"due": str(due), "traceparent": f"00-{n + 1:032x}-{n + 1:016x}-01"}
            message = aio_pika.Message(body, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(message, names[n % len(names)])
            waits.append((time.time() - due) * 1000)

    await asyncio.gather(*(publish(channel.default_exchange) for channel in channels))
    last_at = time.time()
    if paced:
        await asyncio.wait_for(enough.wait(), 10)
    print(json.dumps({"first_at": first_at, "last_at": last_at, "ms": waits, "body_ms": body_waits}), flush=True)
    for one in connections:
        await one.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.amqp", description=__doc__)
    parser.add_argument("mode", choices=["load", "paced"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--queues", type=int, default=100)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--connections", type=int, default=40)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=100)
    uvloop.run(main(parser.parse_args()))
