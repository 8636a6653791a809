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
    from aimx.message.payload import PayloadError
    from aimx.sdk.account import Account
    from aimx.sdk.client import AsyncClient, Sent, connect
    from aimx.sdk.errors import (
        AimxError,
        InvalidMessage,
        KeyReused,
        LoopRefused,
        NoReply,
        NotConfigured,
        Refused,
        SignInFailed,
        Unconfirmed,
        Undelivered,
        Unreachable,
    )
    from aimx.sdk.message import Message
    from aimx.sdk.receipt import ElsewhereLogged, Receipt, ReceiptInvalid, Suppressed

__version__ = "0.1.0"

__all__ = [
    "Account",
    "AimxError",
    "AsyncClient",
    "ElsewhereLogged",
    "InvalidMessage",
    "KeyReused",
    "LoopRefused",
    "Message",
    "NoReply",
    "NotConfigured",
    "PayloadError",
    "Receipt",
    "ReceiptInvalid",
    "Refused",
    "Sent",
    "SignInFailed",
    "Suppressed",
    "Unconfirmed",
    "Undelivered",
    "Unreachable",
    "connect",
]

_HOMES = {
    "Account": "aimx.sdk.account",
    "AsyncClient": "aimx.sdk.client",
    "Message": "aimx.sdk.message",
    "PayloadError": "aimx.message.payload",
    "ElsewhereLogged": "aimx.sdk.receipt",
    "Receipt": "aimx.sdk.receipt",
    "ReceiptInvalid": "aimx.sdk.receipt",
    "Suppressed": "aimx.sdk.receipt",
    "Sent": "aimx.sdk.client",
    "connect": "aimx.sdk.client",
}
"""Where each name lives; all others are errors."""


def __getattr__(name: str) -> Any:
    # The server lives in the same package and must not load the client (and its SMTP library) to start.
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "aimx.sdk.errors")), name)
    raise AttributeError(f"module 'aimx' has no attribute {name!r}")
