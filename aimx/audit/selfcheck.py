"""A cheap look, now and then, whether the log is still the one this node has signed: the metric `aimx.audit.verdict`.

It reads a few dozen hashes: the newest checkpoint in the log, and the one the node keeps beside it, must be of this
very tree. What it cannot see (a leaf rewritten together with nothing else) is `aimx audit verify`'s.
"""

import asyncio
import logging
from pathlib import Path
from typing import Literal, get_args

from aimx.audit.keys import load_public
from aimx.audit.log import LogError, Reader
from aimx.audit.restored import fault, heads
from aimx.audit.sequencer import high_water
from aimx.telemetry import metrics

log = logging.getLogger("aimx.audit")

Verdict = Literal["consistent", "inconsistent", "unknown"]

EVERY_S = 30.0

_VERDICT = metrics.gauge("aimx.audit.verdict")
_FAILURES = metrics.counter("aimx.audit.verify.failures").labels()


async def watch(reader: Reader, folder: Path) -> None:
    """Check, say it in the metric, rest, for ever."""
    while True:
        verdict = await asyncio.to_thread(check, reader, folder)
        for one in get_args(Verdict):
            _VERDICT.labels(one).set(float(one == verdict))
        await asyncio.sleep(EVERY_S)


def check(reader: Reader, folder: Path) -> Verdict:
    """`folder` is the node's data folder."""
    try:
        remembered = high_water(folder)  # before the state, so that it cannot be younger
        state = reader.state()
        signed = [] if state.signed is None else [("the newest checkpoint in the log", state.signed)]
        wrong = fault(reader, heads([*remembered, *signed], load_public(folder).logs))
        if wrong is None and state.frontier.root() != state.root:
            wrong = "has a root that its own tree does not give"
    except (LogError, OSError, ValueError) as error:
        log.warning("the audit log could not be looked at", extra={"error": str(error)})
        return "unknown"
    if wrong is None:
        return "consistent"
    _FAILURES.add()
    log.error("the audit log %s", wrong, extra={"event": "audit.inconsistent"})
    return "inconsistent"
