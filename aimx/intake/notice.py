"""What the node itself writes to a sender: it comes in like any message, but from nobody."""

from collections.abc import Mapping
from typing import Any

from aimx.config import Settings
from aimx.delivery.retry import Backoff
from aimx.intake.commit import Settled, accepted, commit
from aimx.intake.envelope import Octets
from aimx.intake.plan import Terms, first
from aimx.message import identifier
from aimx.routing.table import Landing
from aimx.store.contract import NewMessage, SpanRef, Store
from aimx.telemetry import metrics
from aimx.telemetry.context import Source
from aimx.telemetry.span import Span

ACCEPTED = metrics.counter("aimx.messages.accepted").labels("internal")


async def send(
    settings: Settings,
    store: Store,
    octets: bytes,
    *,
    eid: str,
    now_ms: int,
    to: Landing,
    span: Span,
    workflow: str | None,
    facts: Mapping[str, Any],
    settled: Settled | None,
) -> None:
    """Send a finished message on its way, in one commit with what it settles. `span` is its creation context."""
    whole = Octets.of(octets)
    assert isinstance(whole.body, bytes)
    context = span.context
    here = SpanRef(context.trace_id, context.span_id)
    replied = identifier.message_ids(whole.header.get("In-Reply-To"))
    message = NewMessage(
        eid=eid,
        t_ms=now_ms,
        sender="",
        agent=None,
        recipients=(to.address,),
        header=whole.header.to_bytes(),
        body=whole.body,
        message_id=whole.header.get("Message-ID") or "",
        in_reply_to=replied[0] if replied else None,
        subject=whole.header.get("Subject") or "",
        content_type=(whole.header.get("Content-Type") or "").partition(";")[0].strip().lower(),
        workflow=workflow,
        priority=0,
        origin=here,
        trace_flags=context.flags,
        tracestate="",
        baggage="",
        context_source=Source.HOP.value,
        received=here,
        depth=0,
        loop_key="",  # a report is nobody's turn: it counts in no loop
        payload=b"",
        template=b"",
    )
    told = {"recipients": [to.address], "agent": None, "in_reply_to": message.in_reply_to, **facts}
    event = accepted(settings.node, message, whole, span, len(octets), told)
    terms = Terms(
        creation=context,
        now_ms=now_ms,
        deadline_ms=now_ms + int(settings.delivery.deadline * 1000),
        backoff=Backoff.of(settings.delivery),
        by=settings.domains[0],
    )
    firsts = [first(to, to.address, span, terms)]
    await commit(store, settings.node, message, firsts, event, span, settled)
    ACCEPTED.add()
