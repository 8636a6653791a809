"""`/v1/traces` and `/v1/workflows`: who answered whom, and what a person should look at."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from aimx.config import LoopLimits
from aimx.sidecar.access import Here, SignedIn
from aimx.sidecar.answer import Turns, answer
from aimx.sidecar.conversation import MAX_MESSAGES, Conversation, trace_conversation, workflow_conversation
from aimx.sidecar.describe import problems
from aimx.sidecar.models import A_TRACE, TRACE_ID, Event, Message, TraceView, WorkflowView, WorkflowWarning
from aimx.sidecar.timeline import Timeline, assemble

router = APIRouter(tags=["conversations"])


@router.get(
    "/v1/traces/{trace_id}",
    summary="A trace: its messages, its events, and the tree of who answered whom",
    operation_id="getTrace",
    response_model=TraceView,
    responses=problems("unauthenticated", "not-found", "busy", "invalid-request", "unavailable"),
)
async def get_trace(
    request: Request,
    here: Here,
    caller: SignedIn,
    trace_id: Annotated[str, Path(pattern=TRACE_ID, description="32 lowercase hex digits.", examples=[A_TRACE])],
) -> Response:
    async with _turns(request).next(caller.agent):
        found = await trace_conversation(here.store, bytes.fromhex(trace_id), caller.agent)
        return await answer(lambda: _trace(trace_id, found))


def _turns(request: Request) -> Turns:
    found = request.app.state.turns
    assert isinstance(found, Turns)
    return found


def _trace(trace_id: str, found: Conversation) -> TraceView:
    wanted = bytes.fromhex(trace_id)
    stored = {event.seq: event for rows in found.events.values() for event in rows if event.row.trace_id == wanted}
    stored.update((event.seq, event) for event in found.refused)
    return TraceView(
        trace_id=trace_id,
        messages=[Message.of(record) for record in found.records],
        events=[Event.of(stored[seq]) for seq in sorted(stored)],
        tree=assemble(found),
    )


@router.get(
    "/v1/workflows/{id:path}",
    summary="A workflow: its messages in order, its agents, and warnings",
    operation_id="getWorkflow",
    response_model=WorkflowView,
    responses=problems("unauthenticated", "not-found", "busy", "invalid-request", "unavailable"),
)
async def get_workflow(
    request: Request,
    here: Here,
    caller: SignedIn,
    workflow: Annotated[
        str,
        Path(alias="id", min_length=1, max_length=998, description="X-Workflow-ID, exactly.", examples=["report-17"]),
    ],
) -> Response:
    async with _turns(request).next(caller.agent):
        found = await workflow_conversation(here.store, workflow, caller.agent)
        return await answer(lambda: _workflow(workflow, found, here.settings.loop))


def _workflow(workflow: str, found: Conversation, limits: LoopLimits) -> WorkflowView:
    tree = assemble(found)
    return WorkflowView(
        workflow=workflow,
        trace_ids=tree.trace_ids,
        started_ms=tree.started_ms,
        duration_ms=tree.duration_ms,
        depth=tree.depth,
        outcome=tree.outcome,
        counts=tree.counts,
        agents=tree.participants,
        warnings=warnings(tree, limits),
        messages=[Message.of(record) for record in found.records],
    )


def warnings(tree: Timeline, limits: LoopLimits) -> list[WorkflowWarning]:
    """What a person should look at, in the order in which it happened. Pure."""
    found: list[WorkflowWarning] = []
    if tree.truncated:
        text = f"more than {MAX_MESSAGES} messages; the older ones are neither shown nor counted"
        found.append(WorkflowWarning(kind="truncated", message=None, text=text))
    for entry in sorted(tree.entries, key=lambda entry: (entry.t_ms, entry.id)):
        for step in entry.steps:
            match step.kind:
                case "warned":
                    found.append(WorkflowWarning(kind="loop", message=entry.id, text=step.text))
                case "refused" if not entry.stored:
                    found.append(WorkflowWarning(kind="refused", message=entry.id, text=f"{entry.sender}: {step.text}"))
                case "bounced":
                    found.append(WorkflowWarning(kind="bounced", message=entry.id, text=step.text))
                case _:
                    pass
        for copy in entry.copies:
            if copy.outcome == "waiting":
                text = f"waits for {copy.address} after {copy.attempts} attempts"
                found.append(WorkflowWarning(kind="waiting", message=entry.id, text=text))
    if limits.warn_depth and tree.depth >= limits.warn_depth:
        deepest = max(tree.entries, key=lambda entry: entry.depth or 0)
        text = f"the chain of answers is {tree.depth} long; the loop guard warns from {limits.warn_depth} on"
        found.append(WorkflowWarning(kind="deep", message=deepest.id, text=text))
    return found
