"""That the log only ever grew: a proof between any two of its sizes. Open, for it holds hashes and nothing else."""

import asyncio
import base64
from typing import Annotated

from fastapi import APIRouter, Query

from aimx.sidecar.access import Here
from aimx.sidecar.describe import problems
from aimx.sidecar.models import Consistency
from aimx.sidecar.problems import Problem
from aimx.tlog import tree

router = APIRouter(tags=["audit"])

_NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,63}$"
Size = Annotated[int, Query(ge=0, le=2**53, description="How many leaves.", examples=[1])]


@router.get(
    "/v1/audit/consistency",
    summary="That the log of one size begins with the log of another",
    description="A proof (RFC 6962 §2.1.2) between any two sizes of one shard, without `shard` of the newest.",
    operation_id="proveConsistency",
    responses=problems("not-found", "invalid-request", "unavailable"),
)
async def consistency(
    here: Here,
    old: Annotated[Size, Query(alias="from")],
    new: Annotated[Size, Query(alias="to")],
    shard: Annotated[str | None, Query(pattern=_NAME, description="The last part of the shard's origin.")] = None,
) -> Consistency:
    def work() -> Consistency:
        reader = here.log.named(shard) if shard else here.log
        if reader is None:
            raise Problem("not-found", "There is no such shard. `/log/shards` lists those there are.")
        described = reader.described()
        one = reader.shard(reader.state().shard)
        if not old <= new <= described.size:
            raise Problem("not-found", f"It has {described.size} leaves; ask with from ≤ to ≤ {described.size}.")
        nodes = one.node_reader()
        path = one.consistency(old, new) if 0 < old < new else []
        return Consistency(
            origin=described.origin,
            old=old,
            new=new,
            old_root=_text(tree.root_at(old, nodes)),
            new_root=_text(tree.root_at(new, nodes)),
            proof=[_text(part) for part in path],
        )

    return await asyncio.to_thread(work)


def _text(octets: bytes) -> str:
    return base64.b64encode(octets).decode()
