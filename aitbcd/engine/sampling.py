"""Samples the GPUs of the jobs that run, by the clock, while there are any: nothing wakes else."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from aitbcd.gpus import Gpus
from aitbcd.model import Job
from aitbcd.settings import Gpus as Settings

#: By number and attempt.
Key = tuple[int, int]


class Sampling:
    def __init__(
        self,
        gpus: Gpus,
        settings: Settings,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._gpus = gpus
        self._settings = settings
        self._spawn = spawn
        self._jobs: dict[Key, Job] = {}
        self._is_ticking = False

    def begin(self, job: Job) -> None:
        """Sample the GPUs of an attempt from now on, if it has some."""
        if job.gpu_uuids:
            self._jobs[_key(job)] = job
            self.resume()

    def stop(self, job: Job) -> None:
        """Sample them no more: nothing of the attempt runs."""
        self._jobs.pop(_key(job), None)

    def resume(self) -> None:
        """Go on, if there is something to sample: the configuration may have been changed."""
        if self._jobs and self._settings.sample_s and not self._is_ticking:
            self._is_ticking = True
            self._spawn(self._tick())

    async def _tick(self) -> None:
        try:
            while self._jobs and (interval_s := self._settings.sample_s):
                # On a grid, so that what a sample takes does not add up. A timer may be early.
                now = time.monotonic()
                due = (math.floor(now / interval_s + 0.1) + 1) * interval_s
                await asyncio.sleep(due - now)
                if uuids := {uuid for job in self._jobs.values() for uuid in job.gpu_uuids}:
                    await self._gpus.sample(uuids)
        finally:
            self._is_ticking = False


def _key(job: Job) -> Key:
    return job.number, job.attempt
