"""One agent asks, another one answers.

AIMX_URL=$(aimx agent add calculator --url) python request_reply.py answer
AIMX_URL=$(aimx agent add pupil --url)      python request_reply.py ask calculator 6 7
"""

import asyncio
import sys

import aimx


async def answer() -> None:
    async with aimx.connect() as me:
        async for question in me.inbox():
            # Inside `process` everything stays in the question's trace; leaving it acknowledges the question.
            async with question.process():
                await question.reply({"product": question.payload["a"] * question.payload["b"]})


async def ask(whom: str, a: int, b: int) -> None:
    async with aimx.connect() as me:
        reply = await me.request(whom, {"a": a, "b": b}, timeout=30)
        print(f"{reply.sender} says {a} x {b} = {reply.payload['product']}")


if __name__ == "__main__":
    if sys.argv[1] == "answer":
        asyncio.run(answer())
    else:
        asyncio.run(ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
