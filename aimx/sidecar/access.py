"""Who asks: nobody, the admin, or an agent with its own token; and the record of what the admin looks at.

An agent sees what it sent or received. A trace id or a workflow id by itself grants nothing: both are the sender's to
choose, so an agent's view of a trace or workflow holds its own messages only. What an agent may not see does not exist
for it (404).
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from aimx.audit import events
from aimx.identity import tokens
from aimx.sidecar.context import SidecarContext
from aimx.sidecar.problems import Problem
from aimx.sidecar.visibility import takes_part
from aimx.store.contract import MessageFilter, MessageRecord, SpanRef
from aimx.telemetry.context import Context
from aimx.telemetry.span import INTERNAL, Facts

MAX_TOKEN = 512

_bearer = HTTPBearer(
    scheme_name="token",
    description="The admin's token, or an agent's own (`aimx agent token NAME`).",
    auto_error=False,
)


@dataclass(frozen=True, slots=True)
class Caller:
    agent: str | None
    """Whose view it is; None for the admin, who sees everything."""

    @property
    def is_admin(self) -> bool:
        return self.agent is None


def context(request: Request) -> SidecarContext:
    found = request.app.state.context
    assert isinstance(found, SidecarContext)
    return found


Here = Annotated[SidecarContext, Depends(context)]


async def signed_in(
    request: Request, here: Here, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    try:
        request.state.caller = await _caller(here, bearer)
    except Problem:
        if bearer is not None and request.client is not None:
            here.login_refused(request.client.host)
        raise
    return request.state.caller  # type: ignore[no-any-return]


async def _caller(here: SidecarContext, bearer: HTTPAuthorizationCredentials | None) -> Caller:
    if bearer is None or not bearer.credentials or len(bearer.credentials) > MAX_TOKEN:
        raise Problem("unauthenticated")
    if here.is_admin(bearer.credentials):
        return Caller(None)
    # Found by the hash of a 256-bit secret: how long the look-up takes tells nothing about the secret.
    agent = await here.store.token_owner(tokens.digest(bearer.credentials))
    if agent is None:
        raise Problem("unauthenticated")
    return Caller(agent)


SignedIn = Annotated[Caller, Depends(signed_in)]


async def admin(caller: SignedIn) -> Caller:
    if not caller.is_admin:
        raise Problem("forbidden")
    return caller


Admin = Annotated[Caller, Depends(admin)]


async def scraper(
    request: Request, here: Here, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """A scrape of metrics: by its own token, so that no monitoring has to hold the admin's."""
    if bearer is None or len(bearer.credentials) > MAX_TOKEN or not here.is_scraper(bearer.credentials):
        await admin(await signed_in(request, here, bearer))


Scraper = Annotated[None, Depends(scraper)]


async def message(here: SidecarContext, caller: Caller, name: str) -> MessageRecord:
    """The message, if the caller may see it; else the problem is the same as if there were none.

    `name` is its id or its Message-ID; of several with that Message-ID the newest.
    """
    if name.startswith("<"):
        found = await here.store.find(MessageFilter(message_id=name, viewer=caller.agent), 1)
        record = found[0] if found else None
    else:
        record = await here.store.message(name)
    if record is None or (caller.agent is not None and not takes_part(record, caller.agent)):
        raise Problem("not-found", "There is no such message that this token may see. `GET /v1/messages` lists those.")
    return record


async def witness(here: SidecarContext, caller: Caller, record: MessageRecord) -> None:
    """Before an admin is shown what a message says, that goes into the log. Without the record, no look.

    The event joins the message's own trace, so that its parties find it there.
    """
    if not caller.is_admin:
        return
    # No mailbox was opened, and naming a recipient's would tell the other parties of a blind copy.
    box = ("", record.eid)
    said = Facts({"aimx.audit.event": "mailbox.accessed"})
    with here.tracer.start("audit append", INTERNAL, Context(*record.origin), attributes=said) as span:
        stamp = events.Stamp(here.settings.node, here.now_ms(), SpanRef(span.trace_id, span.span_id), "admin")
        event = events.mailbox_accessed(stamp, by="admin", box=box, via="http", admin=True, message=record.eid)
        await here.store.record([event])
