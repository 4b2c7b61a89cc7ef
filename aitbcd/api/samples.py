"""/v1/jobs/{job}/logs/gpu: what a job's GPUs did, as CSV, while it runs and after."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from aitbcd.api.context import Api
from aitbcd.api.messages import range_headers, range_of, stream
from aitbcd.api.operations import Asked, Operation
from aitbcd.api.results import gone, refuse_without_results
from aitbcd.api.schemas import raw
from aitbcd.api.sending import file_pieces
from aitbcd.errors import BadRange, NoResults
from aitbcd.model import Job, JobState
from aitbcd.results import beneath

MEDIA_TYPE = "text/csv; charset=utf-8"
_NAME = b"logs/gpu.csv"


def operations(api: Api) -> list[Operation]:
    answers = (raw("A row a sample and GPU", MEDIA_TYPE), raw("The Range of it", MEDIA_TYPE, 206))
    return [
        Operation(
            "GET", "/v1/jobs/{job}/logs/gpu", _Samples(api).get, "What a job's GPUs did", answers,
            errors=(NoResults, BadRange),
        )
    ]  # fmt: skip


class _Samples:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def get(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        if not job.gpus:
            raise NoResults(f"job {job.job_id} has no GPUs, and so no samples of any")
        if job.ending is None:
            return await self._so_far(job)
        refuse_without_results(job)
        return self._sealed(request, job)

    async def _so_far(self, job: Job) -> Response:
        samples = await self._api.engine.gpu_samples(job)
        if samples is None:
            why = (
                "it has not started" if job.status is JobState.PENDING else "ask again in a moment"
            )
            raise NoResults(
                f"job {job.job_id} has no samples of its GPUs yet: {why}",
                hint=_HINT,
                state=job.status.value,
            )
        return Response(samples, media_type=MEDIA_TYPE)

    def _sealed(self, request: Request, job: Job) -> Response:
        package = self._api.paths.package(job.job_id)
        try:
            file = beneath.open_in(package, _NAME)
        except PermissionError:
            raise gone(job) from None
        except beneath.NotThere:
            if not package.is_dir():
                raise gone(job) from None
            raise NoResults(
                f"job {job.job_id} has no samples of its GPUs: it was over before the first one",
                hint=_HINT,
                state=job.status.value,
            ) from None
        try:
            span = range_of(request, file.size)
            status, headers = range_headers(span, file.size)
            first, end = span or (0, file.size)
            pieces = file_pieces(self._api, file, first, end)
            return stream(request, pieces, MEDIA_TYPE, headers, status, release=file.close)
        except BaseException:
            file.close()
            raise


_HINT = "GPUs are sampled while a job runs, if gpus.sample in the configuration is not 0"
