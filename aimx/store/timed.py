"""How long each call of a store takes, whichever store it is."""

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aimx.store.contract import Store
from aimx.telemetry import metrics
from aimx.telemetry.metrics import Distribution

DURATION = metrics.histogram("db.client.operation.duration")  # db.system.name: sqlite, postgresql; db.operation.name

OPERATIONS = sorted(
    name for name, call in vars(Store).items() if inspect.iscoroutinefunction(call) and name not in ("open", "close")
)

S = TypeVar("S", bound=Store)


def timed(store: S, system: str) -> S:
    """The same store; from now on its calls are timed, those that fail too."""
    for name in OPERATIONS:
        setattr(store, name, _timed(getattr(store, name), DURATION.labels(system, name)))
    return store


def _timed(call: Callable[..., Awaitable[Any]], duration: Distribution) -> Callable[..., Awaitable[Any]]:
    async def measured(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return await call(*args, **options)
        finally:
            duration.record(time.perf_counter() - began)

    return measured
