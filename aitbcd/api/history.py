"""/v1/export: the history of one's jobs as one file, however long."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import spreadsheet, wire
from aitbcd.api import view
from aitbcd.api.context import Api, caller
from aitbcd.api.filters import CHOICE, wanted
from aitbcd.api.messages import stream
from aitbcd.api.operations import Asked, Operation, choice
from aitbcd.api.schemas import array, json, raw, ref
from aitbcd.model import Job
from aitbcd.store import JobFilter

_FORMAT = choice("format", "As what", ["json", "csv"], default="json")
_CSV = "text/csv; charset=utf-8"
#: Of a line of CSV: fields of a status, but for those that ``_more`` has.
_COLUMNS = (
    "job_id", "number", "user", "name", "status", "reason", "cause", "message", "exit_code",
    "signal", "created_at", "started_at", "finished_at", "duration_s", "attempt", "progress",
    "cpus", "gpus", "memory", "charge", "currency", "results", "result_bytes", "expires_at",
    "retry_of", "command_line",
)  # fmt: skip


def operations(api: Api) -> list[Operation]:
    async def export(request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        pages = _pages(api, owner.uid, wanted(owner, asked))
        is_csv = asked[_FORMAT] == "csv"
        pieces = _csv(pages) if is_csv else _json(pages)
        name = f"jobs.{asked[_FORMAT]}"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return stream(request, pieces, _CSV if is_csv else "application/json", headers)

    return [
        Operation(
            "GET", "/v1/export", export, "Write the history of one's jobs into a file",
            (json("All of them", array(ref("Listed"))), raw("A line each", "text/csv")),
            query=(_FORMAT, *CHOICE),
        )
    ]  # fmt: skip


#: Jobs, and their statuses.
_Page = tuple[list[Job], list[dict[str, wire.Json]]]


async def _pages(api: Api, uid: int, jobs: JobFilter) -> AsyncGenerator[_Page]:
    """Yield jobs with their statuses, a page in each turn of who asks."""
    async with aclosing(api.store.history(jobs)) as history:
        while True:
            async with api.turns.of(("export", uid)):
                some = await anext(history, None)
                shown = await view.listed(api, some or ())
            if some is None:
                return
            yield some, shown


async def _json(pages: AsyncGenerator[_Page]) -> AsyncGenerator[bytes]:
    """Yield one array of statuses."""
    before = b"[\n"
    async with aclosing(pages):
        async for _, statuses in pages:
            yield before + b",\n".join([wire.encode(status) for status in statuses])
            before = b",\n"
    yield b"\n]\n" if before == b",\n" else b"[]\n"


async def _csv(pages: AsyncGenerator[_Page]) -> AsyncGenerator[bytes]:
    """Yield a line of names, then a line for each job."""
    yield spreadsheet.row(_COLUMNS)
    async with aclosing(pages):
        async for jobs, statuses in pages:
            shown = zip(jobs, statuses, strict=True)
            yield b"".join([_line(job, status) for job, status in shown])


def _line(job: Job, status: dict[str, wire.Json]) -> bytes:
    known = status | _more(job)
    return spreadsheet.row(known.get(column) for column in _COLUMNS)


def _more(job: Job) -> dict[str, wire.Json]:
    ending = job.ending
    ran = None
    if ending is not None and job.started_at is not None:
        ran = (ending.finished_at - job.started_at) / 1e6
    return {
        "duration_s": ran,
        "cpus": job.cpus,
        "gpus": job.gpus,
        "memory": job.memory,
        "result_bytes": ending.result_bytes if ending else None,
    }
