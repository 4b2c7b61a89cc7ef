"""Samples the GPUs of the jobs that run, by the clock, while there are any: nothing wakes else.

Each attempt has its series, in a file that the next daemon goes on with. A driver that does not
answer, a GPU that is lost and a daemon that is away make gaps: nothing is made up for them, and
only energy is counted across one, by the driver's own counter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aitbcd import samples
from aitbcd.clock import now_us
from aitbcd.devices import Gpu, GpuState
from aitbcd.gpus import Gpus
from aitbcd.launcher.protocol import folder_name, sealed_memory
from aitbcd.model import WHOLE, GpuUse, Job
from aitbcd.samples import UNKNOWN
from aitbcd.series import Series
from aitbcd.settings import Gpus as Settings

_log = logging.getLogger(__name__)

#: How often what came is written down.
_WRITE_S = 5.0
#: A sample stands for no more than so many intervals: what is more is a gap.
_SPAN_MAX = 2
#: An attempt that ended while no daemon was there says so within this time, when it is found: what
#: its GPUs have done since is not its doing.
_TOLD_S = 0.2
#: How long the end of an attempt waits for what the driver says then.
_LAST_S = 0.25

#: By number and attempt.
Key = tuple[int, int]


@dataclass(slots=True)
class _Course:
    """An attempt and its samples."""

    job: Job
    series: Series
    #: It runs.
    is_sampled: bool = True
    #: That it runs was seen by this daemon: figures of now are figures of it.
    is_known: bool = False
    #: Up to when its samples go (monotonic).
    seen_at: float = field(default_factory=time.monotonic)
    #: What the counters of energy said before the first sample, by place.
    counters: dict[int, int] = field(default_factory=dict)


class Sampling:
    def __init__(
        self,
        gpus: Gpus,
        settings: Settings,
        folder: Path,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """Prepare; ``folder`` is where the series are kept, and is made when there is one."""
        self._gpus = gpus
        self._settings = settings
        self._folder = folder
        self._spawn = spawn
        self._courses: dict[Key, _Course] = {}
        self._is_ticking = False
        #: Why there is no sample at present, as it was logged.
        self._told: str | None = None

    def clear(self, kept: Collection[tuple[str, int]]) -> None:
        """Remove what is of no attempt (job id and number) any more."""
        names = {folder_name(*each) for each in kept}
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)

    # -- the course of an attempt -----------------------------------------------------------------

    async def begin(self, job: Job) -> None:
        """Sample the GPUs of an attempt that runs, if it has some, until it is to ``stop``."""
        if not job.gpu_uuids or _key(job) in self._courses:
            return
        course = await self._open(job)
        if course is None:
            course = _Course(job, self._series(job), is_known=True)
            found = (self._gpus.inventory.find(uuid) for uuid in job.gpu_uuids)
            course.counters = {
                place: samples.counter_mj(gpu) for place, gpu in enumerate(found) if gpu
            }
        self._courses[_key(job)] = course
        self.resume()

    async def _open(self, job: Job) -> _Course | None:
        """Return what an earlier daemon has left of an attempt's samples."""
        if not os.path.exists(self._path(job)):
            return None
        return _Course(job, await asyncio.to_thread(self._series, job))

    def _series(self, job: Job) -> Series:
        # Where nothing is sampled at present, that may change while it runs.
        interval_s = self._settings.sample_s or 1.0
        return Series(self._path(job), len(job.gpu_uuids), interval_s)

    def _path(self, job: Job) -> Path:
        return self._folder / folder_name(job.job_id, job.attempt)

    def stop(self, job: Job) -> None:
        """Sample it no more: nothing of it runs."""
        if course := self._courses.get(_key(job)):
            course.is_sampled = False

    def use(self, job: Job, share: int) -> GpuUse | None:
        """Return the figures so far, of an attempt that has this share (millionths) of its GPUs."""
        course = self._courses.get(_key(job))
        return course.series.use(share) if course else None

    async def finish(self, job: Job, share: int) -> GpuUse | None:
        """Return what an attempt that is over made of its GPUs; None where nobody knows."""
        if not job.gpu_uuids:
            return None
        course = self._courses.get(_key(job)) or await self._open(job)
        if course is None:
            return None
        self._courses[_key(job)] = course
        course.is_sampled = False
        if course.is_known and self._settings.sample_s:
            await self._take_last(course)
        course.series.write()
        return course.series.use(share)

    async def _take_last(self, course: _Course) -> None:
        """Take what is since the last sample: all that there is of a short attempt."""
        course.is_known = False
        before = self._gpus.inventory.at
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_S):
                # The same look that shows whether its GPUs are free.
                await self._gpus.look(max_age_s=-1)
        if self._gpus.inventory.at != before:
            self._take(course, time.monotonic(), now_us())

    async def csv(self, job: Job) -> bytes | None:
        """Return ``logs/gpu.csv`` of an attempt as far as it is; None while there is nothing."""
        course = self._courses.get(_key(job))
        if course is None or course.series.use(WHOLE) is None:
            return None
        found = [self._gpus.inventory.find(uuid) for uuid in course.job.gpu_uuids]
        indices = [gpu.index if gpu else None for gpu in found]

        def write() -> bytes:
            rows = course.series.read()
            return "".join(samples.csv(rows, course.job.gpu_uuids, indices)).encode()

        return await asyncio.to_thread(write)

    async def table(self, job: Job) -> int | None:
        """Return ``logs/gpu.csv`` of an attempt that is finished, as a sealed memfd."""
        table = await self.csv(job)
        if table is None:
            return None
        try:
            return await asyncio.to_thread(sealed_memory, table)
        except OSError as problem:
            _log.warning("job=%s ends without its samples: %s", job.job_id, problem.strerror)
            return None

    def discard(self, job: Job) -> None:
        """Forget an attempt: its end is recorded, or it never ran."""
        if course := self._courses.pop(_key(job), None):
            course.series.close()
            with contextlib.suppress(OSError):
                self._path(job).unlink()

    def close(self) -> None:
        """Leave all to the next daemon."""
        for course in self._courses.values():
            course.series.write()
            course.series.close()

    # -- the clock --------------------------------------------------------------------------------

    def resume(self) -> None:
        """Go on, if there is something to sample: the configuration may have been changed."""
        if self._sampled and self._settings.sample_s and not self._is_ticking:
            self._is_ticking = True
            self._spawn(self._tick())

    @property
    def _sampled(self) -> list[_Course]:
        return [course for course in self._courses.values() if course.is_sampled]

    async def _tick(self) -> None:
        written_at = time.monotonic()
        try:
            while self._sampled and (interval_s := self._settings.sample_s):
                # On a grid, so that what a sample takes does not add up. A timer may be early.
                now = time.monotonic()
                due = (math.floor(now / interval_s + 0.1) + 1) * interval_s
                await asyncio.sleep(due - now)
                try:
                    await self._sample()
                    if time.monotonic() - written_at >= _WRITE_S:
                        written_at = time.monotonic()
                        await self._write()
                    self._begin_to_write()
                except Exception as problem:
                    self._tell(problem)
                else:
                    self._told = None
        finally:
            self._is_ticking = False

    def _tell(self, problem: Exception) -> None:
        """Log, once as long as it stays the same, that a sample is missing."""
        if self._told != (told := repr(problem)):
            self._told = told
            _log.error("the GPUs of jobs could not be sampled", exc_info=problem)

    async def _sample(self) -> None:
        uuids = {uuid for course in self._sampled for uuid in course.job.gpu_uuids}
        if uuids and await self._gpus.sample(uuids):
            now, at = time.monotonic(), now_us()
            for course in self._sampled:
                if course.is_known or now - course.seen_at > _TOLD_S:
                    course.is_known = True
                    self._take(course, now, at)

    def _take(self, course: _Course, now: float, at: int) -> None:
        """Add a row of each GPU that the driver knows."""
        span_s = min(now - course.seen_at, _SPAN_MAX * self._settings.sample_s)
        course.seen_at = now
        for place, uuid in enumerate(course.job.gpu_uuids):
            gpu = self._gpus.inventory.find(uuid)
            if gpu is not None and gpu.state is not GpuState.LOST:
                self._add(course, place, gpu, at, round(span_s * 1e6))

    def _add(self, course: _Course, place: int, gpu: Gpu, at: int, span_us: int) -> None:
        last = course.series.last(place)
        before = last.counter_mj if last else course.counters.get(place, UNKNOWN)
        job_id = course.job.job_id
        course.series.add(
            samples.measure(place, gpu, job_id, at=at, span_us=span_us, before_mj=before)
        )

    def _begin_to_write(self) -> None:
        """Keep the first sample at once: from what it says of energy a new daemon goes on."""
        for course in self._sampled:
            if not course.series.is_written:
                course.series.write()

    async def _write(self) -> None:
        for course in self._sampled:
            if course.series.is_full:
                await asyncio.to_thread(course.series.tidy)
            course.series.write()


def _key(job: Job) -> Key:
    return job.number, job.attempt
