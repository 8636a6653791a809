"""Stock aiosmtpd with a handler that keeps nothing: what Python's usual SMTP server spends on doing nothing.

`python -m bench.stock` serves on a free port, which it prints.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import processes
from bench.load import Answering


class Stock(Answering):
    @contextmanager
    def running(self) -> Iterator[None]:
        self._process = subprocess.Popen([sys.executable, "-m", "bench.stock"], stdout=subprocess.PIPE, text=True)
        try:
            assert self._process.stdout is not None
            self.smtp = f"127.0.0.1:{int(self._process.stdout.readline())}"
            yield
        finally:
            self._process.kill()
            self._process.wait(5)

    def cpu_s(self) -> float:
        return processes.cpu_s(self._process.pid)


class Nothing:
    async def handle_DATA(self, *_: Any) -> str:
        return "250 OK"


async def serve() -> None:
    from aiosmtpd.smtp import SMTP

    server = await asyncio.get_running_loop().create_server(lambda: SMTP(Nothing(), hostname="stock"), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
