"""An engine in the test's own process, with all that is real but perhaps the clock."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aitbcd import machine, settings
from aitbcd.clock import Clock, now_us, steady_us
from aitbcd.engine import Engine
from aitbcd.feed import Feed
from aitbcd.gpus import Claims, Drains, Gpus
from aitbcd.model import Job, JobSpec, JobState, Machine, Owner, ResultsState
from aitbcd.paths import Paths
from aitbcd.runs import Runs
from aitbcd.state import StateFolder
from aitbcd.store import Store
from tests.service import DEADLINE_S, become_subreaper, end_ours

T = TypeVar("T")

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
ME = Owner(os.getuid(), "me")


@dataclass
class Time:
    """A clock and a machine's age that a test can move on, together or apart."""

    ahead_us: int = 0
    aged_us: int = 0

    def clock(self) -> Clock:
        return Clock(lambda: now_us() + self.ahead_us, lambda: steady_us() + self.aged_us)

    def pass_by(self, span_us: int) -> None:
        self.ahead_us += span_us
        self.aged_us += span_us

    def jump(self, span_us: int) -> None:
        self.ahead_us += span_us


@dataclass
class Rig:
    """An engine and its parts."""

    engine: Engine
    store: Store
    runs: Runs
    results: Path
    gpus: Gpus
    gates: int = 0
    owner: Owner = field(default_factory=lambda: ME)

    async def submit(self, *argv: str, owner: Owner | None = None, **more: object) -> Job:
        spec = JobSpec(tuple(os.fsencode(each) for each in argv), cwd=b"/", **more)  # type: ignore[arg-type]
        return await self.engine.submit(owner or self.owner, spec)

    async def run(self, *argv: str, owner: Owner | None = None, **more: object) -> Job:
        return await self.ended(await self.submit(*argv, owner=owner, **more))

    async def job(self, job: Job) -> Job:
        found = await self.store.job(job.number)
        assert found is not None
        return found

    async def reached(self, job: Job, status: JobState) -> Job:
        async def look() -> Job | None:
            found = await self.job(job)
            return found if found.status is status else None

        return await until(f"{job.job_id} is {status.value}", look)

    async def ended(self, job: Job) -> Job:
        async def look() -> Job | None:
            found = await self.job(job)
            return found if found.status.is_final else None

        return await until(f"{job.job_id} is over", look)

    async def expired(self, job: Job) -> Job:
        async def look() -> Job | None:
            found = await self.job(job)
            assert found.ending is not None
            return found if found.ending.results is ResultsState.EXPIRED else None

        return await until(f"the results of {job.job_id} expire", look)

    def package(self, job: Job) -> Path:
        return self.results / job.job_id

    async def gone(self, job: Job) -> None:
        """Wait until nothing is left of a job's package, and nothing else is to be removed."""
        await self.gone_alone(job)

        async def look() -> bool:
            return not await self.store.removals()

        await until("all is removed", look)

    async def gone_alone(self, job: Job) -> None:
        """Wait until nothing is left of a job's package."""

        async def look() -> bool:
            return not [path for path in self.results.iterdir() if job.job_id in path.name]

        await until(f"the package of {job.job_id} goes", look)


async def until(what: str, condition: Callable[[], Awaitable[T | None]]) -> T:
    """Return the first true answer."""
    end = time.monotonic() + DEADLINE_S
    while not (answer := await condition()):
        assert time.monotonic() < end, f"not within {DEADLINE_S:.0f} s: {what}"
        await asyncio.sleep(0.005)
    return answer


@asynccontextmanager
async def engine_in(
    folder: Path, config: str = "", *, clock: Clock | None = None, boot_id: str | None = None
) -> AsyncIterator[Rig]:
    """Run an engine over the state below ``folder``; a later one goes on from there."""
    become_subreaper()
    where = Paths(folder / "state", folder / "runtime", folder / "aitbcd.toml")
    where.config.write_text(config)
    this_machine = _machine(boot_id)
    with StateFolder(where) as state:
        state.check()
        store = await Store.open(where.db, now=now_us())
        runs = Runs(where, boot_id=this_machine.boot_id)
        await runs.open()
        chosen = settings.load(where.config)
        claims = Claims(where, runs)
        gpus = Gpus(
            chosen.gpus,
            Drains(where.state / "gpus.json", this_machine.boot_id),
            claims.job_of,
            claims.learn,
        )
        await gpus.look()
        engine = Engine(
            store,
            runs,
            Feed(),
            chosen,
            this_machine,
            where,
            gpus,
            uid=os.getuid(),
            clock=clock,
        )
        try:
            await engine.recover()
            yield Rig(engine, store, runs, where.results, gpus)
        finally:
            await engine.close()
            await gpus.close()
            await runs.close()
            await store.close()
            # As a power cut does: what still ran is gone.
            end_ours(str(where.state))
            if runs._process:
                runs._process.wait()


def _machine(boot_id: str | None) -> Machine:
    found = machine.look()
    return Machine(
        cpus=4, memory=8 << 30, miner_id=found.miner_id, boot_id=boot_id or found.boot_id
    )


def scenario(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Make a test of an ``async`` function."""

    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    run.__doc__ = test.__doc__
    return run
