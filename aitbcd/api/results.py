"""/v1/jobs/{ref}/download, /checksums, /files/{path}, /result, /verify: a job's sealed package."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from urllib.parse import unquote_to_bytes

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from aitbcd import manifest, wire
from aitbcd.api.context import Api
from aitbcd.api.messages import (
    JsonResponse,
    StreamBroken,
    range_headers,
    range_of,
    stream,
)
from aitbcd.api.operations import Asked, Operation, choice
from aitbcd.api.schemas import BOOLEAN, INTEGER, array, json, one_of, raw, record, ref
from aitbcd.api.sending import file_pieces, iterated
from aitbcd.errors import BadRange, NoResults, NoSuchFile
from aitbcd.model import Job, ResultsState
from aitbcd.results import beneath, checksums
from aitbcd.results.archive import Archive
from aitbcd.results.package import Package
from aitbcd.results.verify import ANY_SIZE, Abandoned, verify

#: Packages that are verified at the same time, each by all cores; of one owner one.
_VERIFIERS = 4
_TYPES = {b"json": "application/json", b"txt": "text/plain; charset=utf-8",
          b"log": "text/plain; charset=utf-8", b"png": "image/png"}  # fmt: skip


class _AnyConvertor(PathConvertor):
    """A path that may hold a newline, which starlette's own does not match."""

    regex = r"[\s\S]*"


register_url_convertor("any", _AnyConvertor())


_FORMAT = choice("format", "As what", ["zip"], default="zip")


def operations(api: Api) -> list[Operation]:
    resource = _Results(api)
    files = (NoResults, NoSuchFile, BadRange)
    kind = one_of("changed", "missing", "extra", "manifest")
    verdict = record(
        ok=BOOLEAN, files=INTEGER, bytes=INTEGER,
        differences=array(record(kind=kind, path=ref("Text"))),
    )  # fmt: skip
    output = {"type": "object"}
    zipped, text = "application/zip", "text/plain"
    return [
        Operation(
            "GET", "/v1/jobs/{job}/download", resource.download, "Take the results as a zip",
            (raw("The folder job_<ID>", zipped), raw("The Range of it", zipped, 206)),
            query=(_FORMAT,), errors=(NoResults, BadRange),
        ),
        Operation(
            "GET", "/v1/jobs/{job}/checksums", resource.checksums,
            "Read output.sha256 with paths beside the folder", (raw("The lines", text),),
            errors=(NoResults, NoSuchFile),
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
            (json("What differs", verdict),), errors=(NoResults,), is_reading=True,
        ),
    ]  # fmt: skip


class _Results:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._verifiers = ThreadPoolExecutor(_VERIFIERS, thread_name_prefix="verifier")
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def download(self, request: Request, asked: Asked) -> Response:
        return await send_zip(self._api, request, await self._job(request))

    async def checksums(self, request: Request, asked: Asked) -> Response:
        return await send_checksums(self._api, request, await self._job(request))

    async def result(self, request: Request, asked: Asked) -> Response:
        return send_file(self._api, request, await self._job(request), b"output.json")

    async def file(self, request: Request, asked: Asked) -> Response:
        return send_file(self._api, request, await self._job(request), path_of(request))

    async def verify(self, request: Request, asked: Asked) -> Response:
        job = await self._job(request)
        digest = job.ending.digest if job.ending else None
        left = Event()
        size = job.ending.result_bytes if job.ending and digest else ANY_SIZE
        work = partial(verify, self._api.paths.package(job.job_id), digest, left, size)
        watch = asyncio.create_task(_tell_when_left(request, left))
        try:
            loop = asyncio.get_running_loop()
            async with self._turns[job.owner.uid]:
                verdict = await loop.run_in_executor(self._verifiers, work)
        except Abandoned:
            raise StreamBroken("nobody waits for the verdict") from None
        finally:
            left.set()
            watch.cancel()
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

    async def _job(self, request: Request) -> Job:
        job = await self._api.readable_job(request)
        refuse_without_results(job)
        return job


def refuse_without_results(job: Job) -> None:
    """Refuse a job of which nothing is kept.

    Raises:
        NoResults: with its ``state``.
    """
    if job.ending is None:
        raise NoResults(
            f"job {job.job_id} is {job.status.value}: its results are there when it is over",
            hint=f"follow it: aitbcctl watch {job.job_id}",
            state=job.status.value,
        )
    if job.ending.results is not ResultsState.KEPT:
        why = "it never started"
        if job.ending.results is ResultsState.EXPIRED:
            why = f"they expired at {wire.rfc3339(job.expires_at)}"
        raise NoResults(f"job {job.job_id} has no results: {why}", state=job.status.value)


async def send_zip(api: Api, request: Request, job: Job) -> Response:
    """Return a job's package as a zip, or the Range of it."""
    make = partial(Archive, api.paths.package(job.job_id), job.job_id, api.paths.state)
    try:
        async with api.looking_through[job.owner.uid]:
            archive = await api.in_thread(make)
    except beneath.NotThere:
        raise gone(job) from None
    try:
        span = range_of(request, archive.size, archive.tag)
    except BaseException:
        archive.close()
        raise
    status, headers = range_headers(span, archive.size, archive.tag)
    headers["content-disposition"] = f'attachment; filename="{job.job_id}.zip"'
    pieces = iterated(api, archive.pieces(*(span or ())))
    return stream(request, pieces, "application/zip", headers, status, release=archive.close)


def path_of(request: Request) -> bytes:
    """Return the path of the file that a request is for: decoded, it has lost what is no UTF-8."""
    _, _, path = request.scope["raw_path"].partition(b"/files/")
    return unquote_to_bytes(path)


def send_file(api: Api, request: Request, job: Job, path: bytes) -> Response:
    """Return one file of a job's package, or the Range of it."""
    package, file = _open(api, job, path)
    release = partial(_close, file, package)
    try:
        size, tag = file.size, file.tag
        span = range_of(request, size, tag)
    except BaseException:
        release()
        raise
    status, headers = range_headers(span, size, tag)
    kind = _TYPES.get(path.rpartition(b".")[2], "application/octet-stream")
    # A job's text is anybody's text: no browser may run it as a page of ours.
    headers["content-security-policy"] = "sandbox"
    pieces = file_pieces(api, file, *(span or (0, size)))
    return stream(request, pieces, kind, headers, status, release=release)


async def send_checksums(api: Api, request: Request, job: Job) -> Response:
    """Return a job's manifest with paths as they are beside its folder."""
    package, file = _open(api, job, manifest.FILE_NAME.encode())
    release = partial(_close, file, package)
    try:
        # A larger one is none of ours, and may be a hole that takes days to read.
        is_ours = job.ending is not None and file.size <= job.ending.result_bytes
        digest = await api.in_thread(partial(checksums.digest, file)) if is_ours else None
        if job.ending is None or digest != job.ending.digest:
            raise NoResults(
                f"the checksums of job {job.job_id} were changed after they were stored",
                hint=f"see what differs: aitbcctl verify {job.job_id}",
                state=job.status.value,
            )
    except BaseException:
        release()
        raise
    pieces = iterated(api, checksums.prefixed(file, job.job_id.encode()))
    headers = {"content-disposition": f'attachment; filename="{manifest.FILE_NAME}"'}
    return stream(request, pieces, _TYPES[b"txt"], headers, release=release)


def _open(api: Api, job: Job, path: bytes) -> tuple[Package, beneath.OpenFile]:
    """Return a job's package, which stays while it is open, and one of its files."""
    shown = path.decode(errors="backslashreplace")
    try:
        package = Package(api.paths.package(job.job_id))
    except beneath.NotThere:
        raise gone(job) from None
    try:
        return package, package.open(path)
    except beneath.NotThere:
        package.close()
        raise NoSuchFile(f"the results of job {job.job_id} have no file '{shown}'") from None
    except PermissionError:
        package.close()
        detail = f"the file '{shown}' of job {job.job_id} is not readable for the daemon"
        hint = "its owner changed its mode; it is under result_path"
        raise NoSuchFile(detail, hint=hint) from None


def _close(*files: beneath.OpenFile) -> None:
    for file in files:
        file.close()


def gone(job: Job) -> NoResults:
    """Return the refusal of a job whose package somebody else took away."""
    return NoResults(
        f"the results of job {job.job_id} are not where they were stored",
        hint=f"what is missing says: aitbcctl verify {job.job_id}",
    )


async def _tell_when_left(request: Request, left: Event) -> None:
    """Set ``left`` when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    left.set()
