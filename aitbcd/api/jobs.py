"""/v1/jobs: submit one, list, look at one, cancel."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api import view
from aitbcd.api.context import Api, caller
from aitbcd.api.filters import AFTER, CHOICE, LIMIT, wanted
from aitbcd.api.messages import JsonResponse, body_of
from aitbcd.api.operations import Asked, Operation, flag
from aitbcd.api.schemas import json, page, ref
from aitbcd.errors import InvalidJob, NotSatisfiable, WrongCursor, WrongState

JOB_BYTES_MAX = 16 << 20

_DETAIL = flag("detail", "Everything that is known of it")
_FORCE = flag("force", "Without a grace")


def operations(api: Api) -> list[Operation]:
    resource = _Jobs(api)
    status = ref("Status")
    return [
        Operation(
            "POST", "/v1/jobs", resource.submit, "Submit a job",
            (json("It is stored, and will run", status, 201),),
            body={"application/json": ref("Job")}, errors=(InvalidJob, NotSatisfiable),
        ),
        Operation(
            "GET", "/v1/jobs", resource.list, "List one's jobs",
            (json("One page of them", page("jobs", status)),),
            query=(*CHOICE, LIMIT, AFTER), errors=(WrongCursor,),
        ),
        Operation(
            "GET", "/v1/jobs/{job}", resource.get, "Look at a job",
            (json("Its status", {"anyOf": [ref("Details"), status]}),), query=(_DETAIL,),
        ),
        Operation(
            "POST", "/v1/jobs/{job}/cancel", resource.cancel, "End a job",
            (json("Its status now", status),), fields=(_FORCE,), errors=(WrongState,),
        ),
    ]  # fmt: skip


class _Jobs:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def submit(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        spec = wire.job_spec(wire.decode(await body_of(request, JOB_BYTES_MAX)))
        job = await self._api.engine.submit(owner, spec)
        headers = {"location": f"/v1/jobs/{job.job_id}"}
        return JsonResponse(await view.status(self._api, job), 201, headers)

    async def list(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        chosen = replace(wanted(owner, asked), after=asked[AFTER], limit=asked[LIMIT])
        page = await self._api.store.list_jobs(chosen)
        jobs = [await view.status(self._api, job) for job in page.jobs]
        return JsonResponse({"jobs": jobs, "next": page.next})

    async def get(self, request: Request, asked: Asked) -> Response:
        if asked[_DETAIL]:
            return JsonResponse(await view.details(self._api, await self._api.job(request)))
        job = await self._api.readable_job(request, is_use=False)
        return JsonResponse(await view.status(self._api, job))

    async def cancel(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        canceled = await self._api.engine.cancel(job, force=asked[_FORCE])
        return JsonResponse(await view.status(self._api, canceled))
