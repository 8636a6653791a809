"""Send a message and read it. AIMX_URL says where and as whom: export AIMX_URL=$(aimx agent add hello --url)"""

import asyncio

import aimx


async def main() -> None:
    async with aimx.connect() as me:
        sent = await me.send(me.address, {"hello": "world"})
        async for message in me.inbox():
            print(f"{message.sender} says {message.payload}; see: aimx trace {sent.trace_id}")
            await message.ack()
            break


asyncio.run(main())
