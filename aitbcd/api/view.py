"""A job as its status shows it: what the store knows, and what is looked up for who asks.

Progress is read from the job's own files when somebody asks, and kept nowhere. The estimate comes
from it, else from earlier runs of the same name or command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from aitbcd import causes, wire
from aitbcd.api.context import Api
from aitbcd.clock import now_us
from aitbcd.model import Job, JobState, ResultsState
from aitbcd.results import listing, reported
from aitbcd.store import digest_of_command

#: Kept in mind for what is asked for often: digests of commands, the progress last told.
_KEPT = 1024
#: Files of its results that the details name.
_FILES_MAX = 1000
_digests: dict[int, bytes] = {}
_reported: dict[tuple[int, int], int] = {}


async def status(
    api: Api, job: Job, ends: dict[int, int | None] | None = None
) -> dict[str, wire.Json]:
    """Return the status document of a job; ``ends`` as in ``waiting``."""
    percent = progress_of(api, job)
    return wire.status(
        job,
        miner_id=api.machine.miner_id,
        progress=percent,
        waiting=await waiting(api, job, {} if ends is None else ends),
        estimated_completion=await estimate(api, job, percent),
        result_path=os.fspath(api.paths.package(job.job_id)),
        currency=api.settings.pricing.currency,
        advice=_advice(job),
        contact=api.settings.server.contact,
    )


def _advice(job: Job) -> str | None:
    cause = job.ending.cause if job.ending else None
    return causes.ADVICE[cause] if cause else None


async def listed(api: Api, jobs: Sequence[Job]) -> list[dict[str, wire.Json]]:
    """Return the status documents of a list, each with what the job runs."""
    lines = await api.store.command_lines(job.number for job in jobs)
    ends: dict[int, int | None] = {}
    return [await status(api, job, ends) | {"command_line": lines.get(job.number)} for job in jobs]


async def details(api: Api, job: Job) -> dict[str, wire.Json]:
    """Return the status document with everything that is known of the job."""
    spec = await api.store.spec(job.number)
    attempts = await api.store.attempts(job.number)
    if attempts and job.status.is_active:
        attempts[-1] = replace(attempts[-1], gpu_use=api.engine.gpu_use(job.number))
    events = await api.store.events(number=job.number)
    shares = await api.store.count_shares(job.number, now_us())
    files: list[listing.StoredFile] = []
    total = 0
    if job.ending is not None and job.ending.results is ResultsState.KEPT:
        package = api.paths.package(job.job_id)
        files = await api.in_thread(
            partial(listing.first, package, _FILES_MAX, job.ending.digest or "")
        )
        total = len(files) if len(files) < _FILES_MAX else job.ending.result_files
    return await status(api, job) | wire.details(
        job, spec, attempts, events, files=files, files_total=total, shares=shares
    )


def progress_of(api: Api, job: Job) -> int:
    """Return a percentage: 100 when completed, 0 before running, else what the job says."""
    if job.status is JobState.COMPLETED:
        return 100
    key = (job.number, job.attempt)
    if job.ending is not None:
        kept = job.ending.progress
        return _reported.get(key, 0) if kept is None else kept
    if job.status not in (JobState.RUNNING, JobState.CANCELING):
        return 0
    percent = reported.percentage(api.paths.building(job.job_id))
    if percent is None:
        # It said nothing yet, or its package is being sealed.
        return _reported.get(key, 0)
    if len(_reported) >= _KEPT:
        _reported.clear()
    _reported[key] = percent
    return percent


async def estimate(api: Api, job: Job, percent: int) -> int | None:
    """Return when a running job will be over, None where nothing tells."""
    if job.status is not JobState.RUNNING or job.started_at is None:
        return None
    if percent > 0:
        return job.started_at + max(0, now_us() - job.started_at) * 100 // percent
    typical = await api.store.typical_us(job.owner.uid, job.name, await _digest(api, job))
    if typical is None or job.started_at + typical < now_us():
        return None
    return job.started_at + typical


async def waiting(api: Api, job: Job, ends: dict[int, int | None]) -> str | None:
    """Return what a job waits for, and when those are expected to end that have it.

    Args:
        ends: what was found of jobs before, in the same answer.
    """
    for each in api.engine.awaited(job):
        if each.number not in ends:
            ends[each.number] = await estimate(api, each, progress_of(api, each))
    return api.engine.waiting(job, ends)


async def _digest(api: Api, job: Job) -> bytes:
    if job.name is not None:
        return b""
    digest = _digests.get(job.number)
    if digest is None:
        spec = await api.store.spec(job.number)
        digest = digest_of_command(spec.argv)
        if len(_digests) >= _KEPT:
            _digests.clear()
        _digests[job.number] = digest
    return digest
