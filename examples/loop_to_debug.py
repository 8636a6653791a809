"""Two agents that cannot stop thanking each other: watch the node stop them, then look at the trace.

A=$(aimx agent add anna --url) B=$(aimx agent add ben --url); python loop_to_debug.py "$A" "$B"
"""

import asyncio
import sys

import aimx


async def thank(me: aimx.AsyncClient, stopped: asyncio.Event) -> None:
    async for message in me.inbox():
        async with message.process():
            try:
                await message.reply({"thanks": message.payload["thanks"] + 1})
            except aimx.LoopRefused as refusal:
                print(f"{me.account.name} was stopped: {refusal}")
                stopped.set()


async def main(first: str, second: str) -> None:
    stopped = asyncio.Event()
    async with aimx.connect(first) as anna, aimx.connect(second) as ben:
        sent = await anna.send(ben.address, {"thanks": 1}, subject="Thank you!", workflow="courtesy")
        tasks = [asyncio.create_task(thank(who, stopped)) for who in (anna, ben)]
        await stopped.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(f"who, when, how often: aimx trace {sent.trace_id}")


asyncio.run(main(*sys.argv[1:3]))
