"""Mail for `postmaster` is always taken (RFC 5321 §4.5.1), also where nobody has thought of it.

An agent, pool, list, rule or `[domain] postmaster` takes it first. Where there is none, the first such mail makes the
agent: its mailbox holds what comes until the administrator gives it a password.
"""

import logging
from contextlib import suppress

from aimx.audit import events
from aimx.identity import scram
from aimx.store.contract import Agent, AlreadyExists, Store

log = logging.getLogger("aimx.intake")

NAME = "postmaster"


def is_postmaster(address: str) -> bool:
    return address.rpartition("@")[0] == NAME


async def provide(store: Store, address: str, stamp: events.Stamp) -> None:
    """Make the agent. Raises what the store raises."""
    event = events.config_changed(stamp, what="agent.added", by="aimx", subject=address)
    with suppress(AlreadyExists):  # another process was first
        await store.add_agent(Agent(address, scram.NOBODYS, stamp.t_ms), [event])
        log.warning(
            "mail for %s waits in a new mailbox; to read it: aimx agent password %s",
            address,
            address,
            extra={"event": "postmaster.held"},
        )
