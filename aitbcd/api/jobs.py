"""/v1/jobs: submit one, list, look at one, cancel."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aitbcd import wire
from aitbcd.api import view
from aitbcd.api.context import Api, caller, sees_all
from aitbcd.api.messages import JsonResponse, body_of, flag, refuse_unknown, whole_number
from aitbcd.errors import BadRequest, InvalidValue
from aitbcd.model import JobState
from aitbcd.store import JobFilter

JOB_BYTES_MAX = 16 << 20
_CANCEL_BYTES_MAX = 64 << 10
PAGE_MAX = 200
_PAGE = 50
#: 2**63 - 1 has 19 digits; a cursor is a job's number.
_CURSOR_DIGITS_MAX = 18


def routes(api: Api) -> list[Route]:
    resource = _Jobs(api)
    return [
        Route("/v1/jobs", resource.submit, methods=["POST"]),
        Route("/v1/jobs", resource.list),
        Route("/v1/jobs/{ref}", resource.get),
        Route("/v1/jobs/{ref}/cancel", resource.cancel, methods=["POST"]),
    ]


class _Jobs:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def submit(self, request: Request) -> Response:
        owner = caller(request).owner
        refuse_unknown(request)
        spec = wire.job_spec(wire.decode(await body_of(request, JOB_BYTES_MAX)))
        job = await self._api.engine.submit(owner, spec)
        headers = {"location": f"/v1/jobs/{job.job_id}"}
        return JsonResponse(await view.status(self._api, job), 201, headers)

    async def list(self, request: Request) -> Response:
        owner = caller(request).owner
        refuse_unknown(request, "status", "limit", "from", "to", "after", "all")
        is_all = flag(request, "all")
        if is_all:
            sees_all(owner)
        limit = whole_number(request, "limit", _PAGE, 1, PAGE_MAX)
        wanted = JobFilter(
            uid=None if is_all else owner.uid,
            statuses=_statuses(request),
            created_from=_time(request, "from", is_end=False),
            created_before=_time(request, "to", is_end=True),
            before=_cursor(request),
            # One more than asked for tells whether there is a next page.
            limit=limit + 1,
        )
        jobs = await self._api.store.list_jobs(wanted)
        page = jobs[:limit]
        return JsonResponse(
            {
                "jobs": [await view.status(self._api, job) for job in page],
                "next": str(page[-1].number) if len(jobs) > limit else None,
            }
        )

    async def get(self, request: Request) -> Response:
        job = await self._api.job(request)
        refuse_unknown(request, "detail")
        show = view.details if flag(request, "detail") else view.status
        return JsonResponse(await show(self._api, job))

    async def cancel(self, request: Request) -> Response:
        job = await self._api.job(request)
        refuse_unknown(request)
        is_forced = _is_forced(await body_of(request, _CANCEL_BYTES_MAX))
        canceled = await self._api.engine.cancel(job, force=is_forced)
        return JsonResponse(await view.status(self._api, canceled))


def _is_forced(body: bytes) -> bool:
    wish = wire.decode(body) if body.strip() else {}
    if not isinstance(wish, dict) or wish.keys() - {"force"}:
        raise BadRequest("the body of a cancel may be empty or an object with 'force'")
    force = wish.get("force", False)
    if not isinstance(force, bool):
        raise InvalidValue("force is not true or false", field="force")
    return force


def _statuses(request: Request) -> frozenset[JobState]:
    """Return the states asked for: ``status`` may be repeated, or have commas."""
    names = [
        name
        for value in request.query_params.getlist("status")
        for name in value.split(",")
        if name
    ]
    try:
        return frozenset(JobState(name) for name in names)
    except ValueError:
        known = [state.value for state in JobState]
        wrong = ", ".join(name for name in names if name not in known)
        detail = f"there is no status '{wrong}': expected {', '.join(known)}"
        raise InvalidValue(detail, field="status") from None


def _time(request: Request, name: str, *, is_end: bool) -> int | None:
    value = request.query_params.get(name)
    return wire.parse_time(name, value, is_end=is_end) if value else None


def _cursor(request: Request) -> int | None:
    value = request.query_params.get("after")
    if not value:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > _CURSOR_DIGITS_MAX:
        raise InvalidValue(f"after is '{value}', which no list gave as its next", field="after")
    return int(value)
