"""Answers are built and encoded on a thread: a conversation of a thousand messages takes half a second of Python, and
the event loop belongs to the mail."""

import asyncio
from collections.abc import Callable, Mapping

from fastapi import Response
from pydantic import BaseModel


async def answer(build: Callable[[], BaseModel], headers: Mapping[str, str] | None = None) -> Response:
    """The model that `build` returns, as JSON. `build` must be pure."""
    body = await asyncio.to_thread(lambda: build().model_dump_json().encode())
    return Response(body, media_type="application/json", headers=headers)
