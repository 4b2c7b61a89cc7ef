"""/v1/jobs/{job}/download, /files/{path}, /result, /verify: the sealed package of a job."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from urllib.parse import unquote_to_bytes

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api.context import Api
from aitbcd.api.messages import (
    JsonResponse,
    StreamBroken,
    range_headers,
    range_of,
    stream,
)
from aitbcd.api.operations import Asked, Operation
from aitbcd.api.schemas import BOOLEAN, INTEGER, array, json, one_of, raw, record, ref
from aitbcd.errors import BadRange, NoResults, NoSuchFile
from aitbcd.model import Job, ResultsState
from aitbcd.results import beneath
from aitbcd.results.archive import Archive
from aitbcd.results.verify import verify

_PIECE = 256 * 1024
_TYPES = {b"json": "application/json", b"txt": "text/plain; charset=utf-8",
          b"log": "text/plain; charset=utf-8", b"png": "image/png"}  # fmt: skip


class _AnyConvertor(PathConvertor):
    """A path that may hold a newline, which starlette's own does not match."""

    regex = r"[\s\S]*"


register_url_convertor("any", _AnyConvertor())


def operations(api: Api) -> list[Operation]:
    resource = _Results(api)
    files = (NoResults, NoSuchFile, BadRange)
    kind = one_of("changed", "missing", "extra", "manifest")
    verdict = record(
        ok=BOOLEAN, files=INTEGER, bytes=INTEGER,
        differences=array(record(kind=kind, path=ref("Text"))),
    )  # fmt: skip
    output = {"type": "object"}
    return [
        Operation(
            "GET", "/v1/jobs/{job}/download", resource.download, "Take the results as a zip",
            (raw("The folder job_<ID>", "application/zip"),), errors=(NoResults,),
        ),
        Operation(
            "GET", "/v1/jobs/{job}/result", resource.result, "Read output.json of the results",
            (json("The file", output), json("The Range of it", output, 206)), errors=files,
        ),
        Operation(
            "GET", "/v1/jobs/{job}/files/{path:any}", resource.file, "Take one file of the results",
            (raw("The file", "*/*"), raw("The Range of it", "*/*", 206)), errors=files,
        ),
        Operation(
            "POST", "/v1/jobs/{job}/verify", resource.verify,
            "Compare the results with their checksums",
            (json("What differs", verdict),), errors=(NoResults,),
        ),
    ]  # fmt: skip


class _Results:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def download(self, request: Request, asked: Asked) -> Response:
        job = await self._job_with_results(request)
        make = partial(Archive, self._api.paths.package(job.job_id), job.job_id)
        try:
            archive = await self._api.in_thread(make)
        except beneath.NotThere:
            raise _gone(job) from None
        headers = {
            "content-length": str(archive.size),
            "content-disposition": f'attachment; filename="{job.job_id}.zip"',
        }
        pieces = _zip(self._api, archive)
        return stream(request, pieces, "application/zip", headers, release=archive.close)

    async def result(self, request: Request, asked: Asked) -> Response:
        job = await self._job_with_results(request)
        return self._file(request, job, b"output.json")

    async def file(self, request: Request, asked: Asked) -> Response:
        job = await self._job_with_results(request)
        # The decoded path has lost what is no UTF-8.
        _, _, path = request.scope["raw_path"].partition(b"/files/")
        return self._file(request, job, unquote_to_bytes(path))

    async def verify(self, request: Request, asked: Asked) -> Response:
        job = await self._job_with_results(request)
        digest = job.ending.digest if job.ending else None
        package = self._api.paths.package(job.job_id)
        verdict = await self._api.in_thread(partial(verify, package, digest))
        return JsonResponse(
            {
                "ok": verdict.is_ok,
                "files": verdict.files,
                "bytes": verdict.size,
                "differences": [
                    {"kind": kind, "path": wire.text(path)} for kind, path in verdict.differences
                ],
            }
        )

    async def _job_with_results(self, request: Request) -> Job:
        job = await self._api.job(request)
        if job.ending is None:
            raise NoResults(
                f"job {job.job_id} is {job.status.value}: its results are there when it is over",
                hint=f"follow it: aitbcctl watch {job.job_id}",
                state=job.status.value,
            )
        if job.ending.results is not ResultsState.KEPT:
            why = "it never started" if job.attempt == 0 else "they are kept no more"
            raise NoResults(f"job {job.job_id} has no results: {why}", state=job.status.value)
        return job

    def _file(self, request: Request, job: Job, path: bytes) -> Response:
        shown = path.decode(errors="backslashreplace")
        try:
            file = beneath.open_in(self._api.paths.package(job.job_id), path)
        except beneath.NotThere:
            raise NoSuchFile(f"the results of job {job.job_id} have no file '{shown}'") from None
        except PermissionError:
            detail = f"the file '{shown}' of job {job.job_id} is not readable for the daemon"
            hint = "its owner changed its mode; it is under result_path"
            raise NoSuchFile(detail, hint=hint) from None
        size = file.size
        try:
            span = range_of(request, size)
        except BaseException:
            file.close()
            raise
        status, headers = range_headers(span, size)
        start, end = span or (0, size)
        kind = _TYPES.get(path.rpartition(b".")[2], "application/octet-stream")
        # A job's text is anybody's text: no browser may run it as a page of ours.
        headers["content-security-policy"] = "sandbox"
        pieces = _pieces(self._api, file, start, end)
        return stream(request, pieces, kind, headers, status, release=file.close)


def _gone(job: Job) -> NoResults:
    return NoResults(
        f"the results of job {job.job_id} are not where they were stored",
        hint=f"what is missing says: aitbcctl verify {job.job_id}",
    )


async def _pieces(api: Api, file: beneath.OpenFile, start: int, end: int) -> AsyncGenerator[bytes]:
    while start < end:
        piece = await api.in_thread(partial(file.pread, min(_PIECE, end - start), start))
        if not piece:
            raise StreamBroken("the file became shorter while it was sent")
        start += len(piece)
        yield piece


async def _zip(api: Api, archive: Archive) -> AsyncGenerator[bytes]:
    pieces = archive.pieces()
    try:
        while piece := await api.in_thread(lambda: next(pieces, b"")):
            yield piece
    except (RuntimeError, OSError, beneath.NotThere) as problem:
        raise StreamBroken(f"the package changed while it was sent: {problem}") from None
