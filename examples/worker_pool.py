"""Four workers share one agent's inbox; what a worker fails at stays unacknowledged and is handed out again.

AIMX_URL=$(aimx agent add workers --url) python worker_pool.py 20

To share the work among several *agents* instead, name them in aimx.toml and send to the pool's name; messages of one
workflow then stay with one of them:

    [pool.workers]
    members = ["anna", "ben", "carla"]
"""

import asyncio
import contextlib
import random
import sys

import aimx

WORKERS = 4


async def worker(number: int, me: aimx.AsyncClient, done: asyncio.Queue[int]) -> None:
    async for job in me.inbox():
        with contextlib.suppress(ConnectionError):
            async with job.process():
                await asyncio.sleep(random.uniform(0, 0.01))  # the work
                done.put_nowait(job.payload["job"])
                print(f"worker {number} did job {job.payload['job']}")


async def main(jobs: int) -> None:
    done: asyncio.Queue[int] = asyncio.Queue()
    async with aimx.connect() as me:
        workers = [asyncio.create_task(worker(number, me, done)) for number in range(WORKERS)]
        for job in range(jobs):
            await me.send(me.address, {"job": job}, workflow="many-jobs")
        finished = [await done.get() for _ in range(jobs)]
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    print(f"{len(set(finished))} of {jobs} jobs done, each once")


asyncio.run(main(int(sys.argv[1])))
