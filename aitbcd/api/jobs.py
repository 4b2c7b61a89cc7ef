"""/v1/jobs: submit one, list, look at one, cancel, run again, keep and delete it."""

from __future__ import annotations

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from aitbcd import description, wire
from aitbcd.api import view
from aitbcd.api.context import Api, caller
from aitbcd.api.filters import AFTER, CHOICE, LIMIT, wanted
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import Asked, Operation, flag, moment
from aitbcd.api.schemas import BOOLEAN, INTEGER, STRING, json, page, record, ref
from aitbcd.errors import InvalidJob, NotSatisfiable, OverLimit, WrongCursor, WrongState
from aitbcd.model import Job

JOB_BYTES_MAX = 16 << 20

_DETAIL = flag("detail", "Everything that is known of it")
_FORCE = flag("force", "Without a grace")
_UNTIL = moment("until", "Until when; as long as the plan allows where it is null", is_end=True)

_DELETED = record(job_id=STRING, deleted=BOOLEAN, freed_bytes=INTEGER, remaining_bytes=INTEGER)


def operations(api: Api) -> list[Operation]:
    resource = _Jobs(api)
    status = ref("Status")
    return [
        Operation(
            "POST", "/v1/jobs", resource.submit, "Submit a job",
            (json("It is stored, and will run", status, 201),),
            body={"application/json": ref("Job")}, errors=(InvalidJob, NotSatisfiable, OverLimit),
        ),
        Operation(
            "GET", "/v1/jobs", resource.list, "List one's jobs",
            (json("One page of them", page("jobs", ref("Listed"))),),
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
        Operation(
            "POST", "/v1/jobs/{job}/retry", resource.retry, "Submit what a job was as a new one",
            (json("The new job", status, 201),), errors=(WrongState, NotSatisfiable, OverLimit),
        ),
        Operation(
            "POST", "/v1/jobs/{job}/keep", resource.keep, "Keep a job's results longer",
            (json("Its status now", status),), fields=(_UNTIL,), errors=(WrongState,),
        ),
        Operation(
            "DELETE", "/v1/jobs/{job}", resource.delete, "Delete a job and its results",
            (json("It is gone", _DELETED),),
            errors=(WrongState,),
        ),
    ]  # fmt: skip


class _Jobs:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def submit(self, request: Request, asked: Asked) -> Response:
        who = caller(request)
        async with self._api.spool.body(request, JOB_BYTES_MAX, who.owner.uid) as body:
            spec = description.job_spec(wire.decode(body.read()))
        return await self._made(await self._api.engine.submit(who.owner, spec, plan=who.plan))

    async def list(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        chosen = replace(wanted(owner, asked), after=asked[AFTER], limit=asked[LIMIT])
        page = await self._api.store.list_jobs(chosen)
        jobs = await view.listed(self._api, page.jobs)
        return JsonResponse({"jobs": jobs, "next": page.next})

    async def get(self, request: Request, asked: Asked) -> Response:
        if asked[_DETAIL]:
            return JsonResponse(await view.details(self._api, await self._api.job(request)))
        job = await self._api.readable_job(request, is_use=False)
        return JsonResponse(await view.status(self._api, job))

    async def cancel(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        canceled = await self._api.engine.cancel(job, force=asked[_FORCE], by=caller(request).owner)
        return JsonResponse(await view.status(self._api, canceled))

    async def retry(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        who = caller(request)
        # What root runs again is still its user's, whose plan counts.
        plan = who.plan if who.owner.uid == job.owner.uid else None
        return await self._made(await self._api.engine.retry(job, job.owner, plan=plan))

    async def keep(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        kept = await self._api.engine.keep(job, asked[_UNTIL])
        return JsonResponse(await view.status(self._api, kept))

    async def delete(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        size, is_gone = await self._api.engine.delete(job)
        return JsonResponse({
            "job_id": job.job_id, "deleted": True,
            "freed_bytes": size if is_gone else 0, "remaining_bytes": 0 if is_gone else size,
        })  # fmt: skip

    async def _made(self, job: Job) -> Response:
        headers = {"location": f"/v1/jobs/{job.job_id}"}
        return JsonResponse(await view.status(self._api, job), 201, headers)
