"""What the node hands to the HTTP side, as one value."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aimx.audit.keys import PublicKeys
from aimx.audit.log import Reader
from aimx.audit.witness import Witness
from aimx.config import Settings
from aimx.store.contract import Store
from aimx.telemetry.metrics import Snapshot
from aimx.telemetry.span import Tracer


@dataclass(frozen=True, slots=True)
class SidecarContext:
    store: Store
    log: Reader
    keys: Callable[[], PublicKeys]
    """The verifier keys as they are now."""
    settings: Settings
    is_admin: Callable[[str], bool]
    """Whether this is the admin's token, in constant time."""
    is_scraper: Callable[[str], bool]
    """Whether it is the one that opens `/metrics` and nothing else."""
    metrics: Callable[[], Snapshot]
    """The whole node's, for a scrape."""
    ready: Callable[[], Sequence[str]]
    """What keeps the node from serving, a sentence each; empty when nothing does."""
    tracer: Tracer
    login_refused: Callable[[str], None] = lambda peer: None
    """Told the IP address of whoever gave a token that nobody has."""
    witness: Witness | None = None
    """None: this node is no witness of others' logs."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000
