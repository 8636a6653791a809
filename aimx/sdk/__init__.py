"""The Python client: send, inbox, ack, request, with trace context joined by itself.

Owns the agent's side of a conversation: where a node is (`account`), handing mail over (`outbox`), taking it (`imap`,
`link`, `inbox`), its spans (`trace`). Speaks SMTP and IMAP like any other client; imports nothing of the server but
message, telemetry and tlog.
"""

from aimx.sdk.account import Account
from aimx.sdk.client import AsyncClient, Sent, connect
from aimx.sdk.errors import (
    AimxError,
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
