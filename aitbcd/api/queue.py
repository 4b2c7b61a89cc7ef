"""/v1/queue: everybody's jobs that run or wait, in their order. No commands, no results."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api import view
from aitbcd.api.context import Api, caller
from aitbcd.api.filters import AFTER, LIMIT
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import Asked, Operation
from aitbcd.api.schemas import json, page, ref
from aitbcd.errors import WrongCursor


def operations(api: Api) -> list[Operation]:
    async def show(request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        found = await api.store.queue(asked[AFTER], asked[LIMIT])
        jobs = [
            wire.queued(
                job,
                is_mine=job.owner.uid == owner.uid,
                progress=(percent := view.progress_of(api, job)),
                waiting=api.engine.waiting(job),
                estimate=await view.estimate(api, job, percent),
            )
            for job in found.jobs
        ]
        return JsonResponse({"jobs": jobs, "next": found.next})

    return [
        Operation(
            "GET", "/v1/queue", show, "Show everybody's queue: what runs, then what waits",
            (json("One page of it", page("jobs", ref("Queued"))),), query=(LIMIT, AFTER),
            errors=(WrongCursor,),
        )
    ]  # fmt: skip
