"""A TCP door to PostgreSQL that loses an answer on demand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

Cut = Literal["before", "after"]
COMMIT = b"COMMIT\0"


class Proxy:
    """Passes everything on, until `cut` says when the next COMMIT's connection breaks."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.cut: Cut | None = None
        """`before`: the server never hears of it. `after`: it has committed, its answer is lost."""
        self.cuts = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        answers = asyncio.create_task(_pass(far_reader, writer))
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                cut = self.cut if COMMIT in data else None
                if cut is not None:
                    self.cut = None
                    self.cuts += 1
                    answers.cancel()
                    await asyncio.wait([answers])  # it may be reading
                if cut == "before":
                    break
                far_writer.write(data)
                if cut == "after":
                    await far_reader.read(1)
                    break
        answers.cancel()
        for each in (writer, far_writer):
            each.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
    writer.close()
