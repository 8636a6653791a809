"""AIMX: the mail server AI agents talk through. This is the public surface of its Python client.

import asyncio, aimx

async def main():
    async with aimx.connect() as me:
        await me.send("critic", {"draft": "…"})

asyncio.run(main())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimx.sdk import (
        Account,
        AimxError,
        AsyncClient,
        LoopRefused,
        Message,
        NoReply,
        NotConfigured,
        Refused,
        Sent,
        SignInFailed,
        Unconfirmed,
        Undelivered,
        Unreachable,
        connect,
    )

__version__ = "0.1.0"

__all__ = [
    "Account",
    "AimxError",
    "AsyncClient",
    "LoopRefused",
    "Message",
    "NoReply",
    "NotConfigured",
    "Refused",
    "Sent",
    "SignInFailed",
    "Unconfirmed",
    "Undelivered",
    "Unreachable",
    "connect",
]


def __getattr__(name: str) -> Any:
    # The server lives in the same package and must not load the client (and its SMTP library) to start.
    if name in __all__:
        return getattr(import_module("aimx.sdk"), name)
    raise AttributeError(f"module 'aimx' has no attribute {name!r}")
