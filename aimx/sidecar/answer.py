"""Answers are built and encoded on a thread: a conversation of a thousand messages takes half a second of Python, and
the event loop belongs to the mail."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from fastapi import Response
from pydantic import BaseModel

from aimx.sidecar.problems import Problem

MOST_WAITING = 4
"""Conversations that one caller may wait for."""


class Turns:
    """One conversation is put together at a time: each may be a thousand messages, in memory and on the interpreter."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting: Counter[str | None] = Counter()

    @asynccontextmanager
    async def next(self, caller: str | None) -> AsyncIterator[None]:
        """`caller`: an agent's address, None for the admin. Raises Problem."""
        if self._waiting[caller] >= MOST_WAITING:
            raise Problem("busy")
        self._waiting[caller] += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting[caller] -= 1
            if not self._waiting[caller]:
                del self._waiting[caller]


async def answer(build: Callable[[], BaseModel], headers: Mapping[str, str] | None = None) -> Response:
    """The model that `build` returns, as JSON. `build` must be pure."""
    body = await asyncio.to_thread(lambda: build().model_dump_json().encode())
    return Response(body, media_type="application/json", headers=headers)
