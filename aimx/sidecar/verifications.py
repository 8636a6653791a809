"""Verifications as jobs: begun by one request, watched by others, their result kept while the process lives.

One runs at a time, whoever began it; `GET /v1/audit/verify` waits for its own and counts as one.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response

from aimx.audit.anchoring import trust_of
from aimx.audit.report import Report
from aimx.audit.verify import verify
from aimx.message.identifier import new_eid
from aimx.sidecar.access import Admin, Here
from aimx.sidecar.context import SidecarContext
from aimx.sidecar.describe import problems
from aimx.sidecar.models import A_ULID, ULID, Verification, Verifications, VerifyReport
from aimx.sidecar.problems import Problem

log = logging.getLogger("aimx.sidecar")

router = APIRouter(tags=["audit"])

KEPT = 20
"""Jobs that are remembered; the oldest go."""


@dataclass(slots=True)
class Job:
    """`done` of `total` things were looked at; the numbers come from any thread."""

    id: str
    started_ms: int
    state: Literal["running", "done", "failed"] = "running"
    done: int = 0
    total: int = 0
    ended_ms: int | None = None
    report: Report | None = None

    def told(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def shown(self) -> Verification:
        return Verification(
            id=self.id,
            state=self.state,
            started_ms=self.started_ms,
            ended_ms=self.ended_ms,
            done=self.done,
            total=self.total,
            report=None if self.report is None else VerifyReport.model_validate(self.report.to_json()),
        )


class Verifier:
    """Runs them. Belongs to one application."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self.turn = asyncio.Lock()
        """Held while one runs."""
        self._task: asyncio.Task[None] | None = None

    def jobs(self) -> list[Job]:
        """Newest first."""
        return list(reversed(self._jobs.values()))

    def job(self, name: str) -> Job:
        if name not in self._jobs:
            raise Problem("not-found", "There is no such verification; a restart forgets them.")
        return self._jobs[name]

    async def now(self, here: SidecarContext) -> Report:
        """One run, waited for. Raises Problem (busy)."""
        if self.turn.locked():
            raise Problem("busy")
        async with self.turn:
            return await _verify(here, lambda done, total: None)

    async def begin(self, here: SidecarContext) -> Job:
        """One in the background. Raises Problem (busy)."""
        if self.turn.locked():
            raise Problem("busy")
        await self.turn.acquire()
        job = Job(new_eid(here.now_ms()), here.now_ms())
        self._jobs[job.id] = job
        while len(self._jobs) > KEPT:
            del self._jobs[next(iter(self._jobs))]
        self._task = asyncio.create_task(self._run(job, here), name="aimx-verification")
        return job

    async def _run(self, job: Job, here: SidecarContext) -> None:
        try:
            job.report = await _verify(here, job.told)
            job.state = "done"
        except Exception:
            log.exception("a verification failed")
            job.state = "failed"
        finally:
            job.ended_ms = here.now_ms()
            self.turn.release()


async def _verify(here: SidecarContext, progress: Callable[[int, int], None]) -> Report:
    keys = here.keys()
    return await verify(
        here.store,
        here.settings.data,
        database=here.settings.log_database,
        keys=keys,
        trust=trust_of(here.settings.audit, keys.log),
        progress=progress,
    )


@router.get(
    "/v1/audit/verify",
    summary="Check the whole log now",
    description="And wait for it. A long log is better checked by a job: `POST /v1/audit/verifications`.",
    operation_id="verifyLog",
    responses=problems("unauthenticated", "forbidden", "busy", "unavailable"),
)
async def verify_log(request: Request, here: Here, caller: Admin) -> VerifyReport:
    report = await _verifier(request).now(here)
    return VerifyReport.model_validate(report.to_json())


@router.post(
    "/v1/audit/verifications",
    status_code=202,
    summary="Begin to check the whole log",
    operation_id="beginVerification",
    responses={
        202: {"headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}}},
        **problems("unauthenticated", "forbidden", "busy", "unavailable"),
    },
)
async def begin(request: Request, response: Response, here: Here, caller: Admin) -> Verification:
    job = await _verifier(request).begin(here)
    response.headers["Location"] = f"/v1/audit/verifications/{job.id}"
    return job.shown()


@router.get(
    "/v1/audit/verifications",
    summary="Verifications since the node started, newest first",
    operation_id="listVerifications",
    responses=problems("unauthenticated", "forbidden"),
)
async def list_jobs(request: Request, caller: Admin) -> Verifications:
    return Verifications(items=[job.shown() for job in _verifier(request).jobs()])


@router.get(
    "/v1/audit/verifications/{id}",
    summary="How far one is, or what it found",
    operation_id="getVerification",
    responses=problems("unauthenticated", "forbidden", "not-found", "invalid-request"),
)
async def show(
    request: Request,
    caller: Admin,
    name: Annotated[str, Path(alias="id", pattern=ULID, description="The job's id.", examples=[A_ULID])],
) -> Verification:
    return _verifier(request).job(name).shown()


def _verifier(request: Request) -> Verifier:
    found = request.app.state.verifier
    assert isinstance(found, Verifier)
    return found
