"""Do the store and the log tell the same story? Every event row against its leaf, every opening against its
commitment, every message against its acceptance.

The order of reading makes it honest while the node runs: messages first, then events. A message's event is committed
with it, so whatever message was seen must have an event that is seen later.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from itertools import batched
from typing import Any, NamedTuple, Protocol

from aimx.audit.events import commitment, opened
from aimx.audit.integrity import Checked
from aimx.audit.log import Reader
from aimx.audit.report import Report
from aimx.store.contract import EventRow, MessageFilter, MessageRecord, NotFound, StoredEvent
from aimx.tlog.leaf import KEY_SIZE, committer
from aimx.tlog.receipt import PROMISE_SECONDS

PAGE = 4096
"""Rows in memory at a time."""
PIECE = 1 << 18
"""Octets of a body in memory at a time (for each of AT_ONCE messages)."""
AT_ONCE = 16

_ACCEPTANCE = ("message.accepted", "message.appended")


class Evidence(Protocol):
    """The part of the Store contract that a verification reads."""

    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]: ...
    async def find(self, what: MessageFilter, limit: int, before: str | None = None) -> list[MessageRecord]: ...
    async def message(self, eid: str) -> MessageRecord | None: ...
    async def header(self, eid: str) -> bytes | None: ...
    async def read_body(self, eid: str, start: int, length: int) -> bytes: ...
