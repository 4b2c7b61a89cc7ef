"""Which job a process on a GPU belongs to, as far as that is borne out."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Collection, Iterable
from typing import Protocol

from aitbcd.gpus.facts import ProcessFacts
from aitbcd.paths import Paths

_log = logging.getLogger(__name__)

#: Seconds that a look waits for what is said of containers.
_PATIENCE_S = 2.0
_KNOWN_MAX = 4096
_GROUP = re.compile(r"(?P<above>/.*)/(?P<job>job_[0-9a-z]{1,32})\.\d+(?:/|\Z)")
#: The cgroups of containers, whoever runs them.
_CONTAINER = re.compile(r"(?:docker|libpod)[-/][0-9a-f]{64}")


class Runner(Protocol):
    """Who runs jobs, as ``Runs`` does."""

    @property
    def job_groups(self) -> str | None: ...
    def supervised_by(self, pid: int) -> str | None: ...
    async def containers(self, pids: list[int]) -> dict[int, str]: ...


class Claims:
    """Believes, in this order,

    - a cgroup: nobody but the launcher makes those of attempts, and no process leaves them;
    - descent from the supervisor of an attempt, which orphans keep;
    - the environment, also of an ancestor, if the process is of the job's user: anybody can say
      there what he likes, but the package of a job that runs belongs to its user;
    - what the launcher makes of the container that it is in, which may be root's to read.

    What is of a job that is over, and whose GPUs are not free yet, is of that job.
    """

    def __init__(self, paths: Paths, runner: Runner) -> None:
        self._paths = paths
        self._runner = runner
        #: By pid and start: the job of the container that it is in, None where that has none.
        self._contained: dict[tuple[int, int | None], str | None] = {}
        #: That nobody could be asked is said already.
        self._is_told = False

    async def learn(self, processes: Iterable[ProcessFacts]) -> None:
        """Ask about containers that were not there before, before ``job_of`` is."""
        asked = [
            one
            for one in processes
            if any(map(_CONTAINER.search, one.cgroups)) and _key(one) not in self._contained
        ]
        if not asked:
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found = await self._runner.containers([one.pid for one in asked])
        except Exception as problem:
            # No launcher at present, or one that is busy: the next look asks again.
            if not self._is_told:
                _log.warning("whose containers use a GPU is not known yet: %r", problem)
            self._is_told = True
            return
        self._is_told = False
        if len(self._contained) >= _KNOWN_MAX:
            self._contained.clear()
        self._contained |= {_key(one): found.get(one.pid) for one in asked}

    def job_of(self, process: ProcessFacts, held: Collection[str] = ()) -> str | None:
        """Return the job of a process.

        Args:
            held: the jobs that have the GPU, also those that are over and have to give it back.
        """
        job = self._by_cgroup(process) or self._by_descent(process)
        if job and self._owner(job, held) is not None:
            return job
        if process.claim and self._owner(process.claim, held) == process.uid is not None:
            return process.claim
        job = self._contained.get(_key(process))
        return job if job and self._owner(job, held) is not None else None

    def _by_cgroup(self, process: ProcessFacts) -> str | None:
        groups = self._runner.job_groups
        for path in process.cgroups if groups else ():
            found = _GROUP.match(path)
            if found and groups and groups.endswith(found["above"]):
                return found["job"]
        return None

    def _by_descent(self, process: ProcessFacts) -> str | None:
        return next(filter(None, map(self._runner.supervised_by, process.lineage)), None)

    def _owner(self, job: str, held: Collection[str]) -> int | None:
        """Return the uid of a job that is there; None of one that is not."""
        for package in (self._paths.building(job), self._paths.package(job)):
            try:
                return os.lstat(package).st_uid
            except OSError:
                if job not in held:
                    return None
        return None


def _key(process: ProcessFacts) -> tuple[int, int | None]:
    return process.pid, process.since
