"""/v1/retention: whose results expire when, and whether the clock is believed."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api.context import Api, caller, sees_all
from aitbcd.api.filters import AFTER, ALL, LIMIT
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import Asked, Operation
from aitbcd.api.schemas import INTEGER, MOMENT, STRING, array, json, optional, record
from aitbcd.errors import Forbidden, WrongCursor
from aitbcd.model import Job


def operations(api: Api) -> list[Operation]:
    resource = _Retention(api)
    stopped = optional(record(reason=STRING, since=MOMENT))
    job = record(
        job_id=STRING, number=INTEGER, user=STRING, name=optional(STRING), expires_at=MOMENT,
        result_bytes=INTEGER,
    )  # fmt: skip
    upcoming = record(stopped=stopped, jobs=array(job), next=optional(STRING))
    return [
        Operation(
            "GET", "/v1/retention", resource.show, "Show which of one's results expire next",
            (json("One page of them, and why none expires where that is so", upcoming),),
            query=(LIMIT, AFTER, ALL), errors=(WrongCursor,),
        ),
        Operation(
            "POST", "/v1/retention/resume", resource.resume, "Say that the clock is right",
            (json("Results expire again", record(stopped=stopped)),),
        ),
    ]  # fmt: skip


class _Retention:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def show(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        if asked[ALL]:
            sees_all(owner)
        uid = None if asked[ALL] else owner.uid
        sweeper = self._api.engine.retention
        page = await sweeper.preview(uid, after=asked[AFTER], limit=asked[LIMIT])
        return JsonResponse(
            {
                "stopped": self._stopped(),
                "jobs": [_shown(job) for job in page.jobs],
                "next": page.next,
            }
        )

    async def resume(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        if not owner.is_admin and owner.uid != os.geteuid():
            raise Forbidden(
                "only administrators and the daemon's own user say that the clock is right",
                hint="ask the administrator of this machine",
            )
        await self._api.engine.retention.resume(owner)
        return JsonResponse({"stopped": self._stopped()})

    def _stopped(self) -> wire.Json:
        stop = self._api.engine.retention.status()
        return stop and {"reason": stop.reason, "since": wire.rfc3339(stop.since)}


def _shown(job: Job) -> dict[str, wire.Json]:
    return {
        "job_id": job.job_id,
        "number": job.number,
        "user": job.owner.name,
        "name": job.name,
        "expires_at": wire.rfc3339(job.expires_at),
        "result_bytes": job.ending.result_bytes if job.ending else 0,
    }
