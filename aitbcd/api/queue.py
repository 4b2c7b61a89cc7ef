"""/v1/queue: everybody's jobs that run or wait, in their order. No commands, no results."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api import view
from aitbcd.api.context import Api, caller
from aitbcd.api.filters import AFTER, LIMIT
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import Asked, Operation, flag
from aitbcd.api.schemas import INTEGER, json, page, ref
from aitbcd.errors import WrongCursor

_GPUS = flag("gpus", "Only jobs that have GPUs or wait for some, and how many of them wait")


def operations(api: Api) -> list[Operation]:
    async def show(request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        needs_gpus = asked[_GPUS]
        found = await api.store.queue(asked[AFTER], asked[LIMIT], needs_gpus=needs_gpus)
        ends: dict[int, int | None] = {}
        jobs = [
            wire.queued(
                job,
                is_mine=job.owner.uid == owner.uid,
                progress=(percent := view.progress_of(api, job)),
                waiting=await view.waiting(api, job, ends),
                estimate=await view.estimate(api, job, percent),
            )
            for job in found.jobs
        ]
        document: dict[str, wire.Json] = {"jobs": jobs, "next": found.next}
        if needs_gpus:
            document["pending"] = await api.store.count_pending_for_gpus()
        return JsonResponse(document)

    queue = page("jobs", ref("Queued"))
    queue["properties"]["pending"] = INTEGER
    return [
        Operation(
            "GET", "/v1/queue", show, "Show everybody's queue: what runs, then what waits",
            (json("One page of it", queue),), query=(LIMIT, AFTER, _GPUS),
            errors=(WrongCursor,),
        )
    ]  # fmt: skip
