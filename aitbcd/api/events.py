"""/v1/jobs/{job}/events: what happened to a job, and what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Self

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api.context import Api
from aitbcd.api.following import Following
from aitbcd.api.messages import JsonResponse, stream
from aitbcd.api.operations import Asked, Operation, flag, number
from aitbcd.api.schemas import json, page, raw, ref
from aitbcd.api.ticking import percentages
from aitbcd.clock import now_us
from aitbcd.model import Event, Job, JobState

LINES = "application/x-ndjson"
_PAGE = 1000
_SEQ_MAX = 2**63 - 1


_SINCE = number("since", "Only what came after the event of this seq", 0, _SEQ_MAX, default=0)
_FOLLOW = flag("follow", "Go on until the job is over, as JSON lines, with its progress")


def operations(api: Api) -> list[Operation]:
    events = page("events", ref("Event"))
    answers = (json("Its events, oldest first", events), raw("An event a line", LINES))
    return [
        Operation(
            "GET", "/v1/jobs/{job}/events", _Events(api).get, "What happened to a job",
            answers, query=(_SINCE, _FOLLOW),
        )
    ]  # fmt: skip


class _Events:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def get(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        since = asked[_SINCE]
        if asked[_FOLLOW]:
            return stream(request, _follow(self._api, job, since), LINES)
        events = await self._api.store.events(number=job.number, since=since, limit=_PAGE)
        following = str(events[-1].seq) if len(events) == _PAGE else None
        return JsonResponse({"events": [wire.event(each) for each in events], "next": following})


async def _follow(api: Api, job: Job, since: int) -> AsyncGenerator[bytes]:
    """Yield the events after ``since``, then new ones and the progress, until the job is over."""
    last = since
    async with Following(api, job) as following:
        for event in await _all_events(api, job, since):
            last = event.seq
            yield _line(wire.event(event))
        with _Ticker(api, job, following) as ticker:
            while True:
                following.woken.clear()
                while following.events:
                    event = following.events.popleft()
                    if event.seq > last:
                        last = event.seq
                        yield _line(wire.event(event))
                if following.is_over:
                    return
                if (percent := ticker.take()) is not None:
                    yield _line(_progress(job, percent))
                await following.wait()


async def _all_events(api: Api, job: Job, since: int) -> list[Event]:
    found: list[Event] = []
    while True:
        page = await api.store.events(number=job.number, since=since, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            return found
        since = page[-1].seq


def _progress(job: Job, percent: int) -> dict[str, wire.Json]:
    return {
        "progress": percent,
        "time": wire.rfc3339_exact(now_us()),
        "job_id": job.job_id,
        "number": job.number,
    }


def _line(value: dict[str, wire.Json]) -> bytes:
    return wire.encode(value) + b"\n"


class _Ticker:
    """Looks at a running job's progress when its files change, at most once in a second."""

    def __init__(self, api: Api, job: Job, following: Following) -> None:
        self._api = api
        self._job = job
        self._following = following
        self._attempt = 0
        self._task: asyncio.Task[None] | None = None
        self._percent: int | None = None
        self._told: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def take(self) -> int | None:
        """Return the percentage if it is another than the last one; None otherwise."""
        following = self._following
        if following.status is JobState.RUNNING and following.attempt != self._attempt:
            self._stop()
            self._attempt = following.attempt
            self._percent = self._told = None
            self._task = asyncio.create_task(self._watch())
        if self._percent is None or self._percent == self._told:
            return None
        self._told = self._percent
        return self._told

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        async with aclosing(percentages(self._api, self._job.job_id)) as found:
            async for self._percent in found:
                self._following.woken.set()
