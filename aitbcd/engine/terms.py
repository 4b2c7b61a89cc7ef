"""What a job's end costs, and how long its results are kept: the configuration on one job."""

from __future__ import annotations

from aitbcd import plans, pricing, users
from aitbcd.model import Job
from aitbcd.retention import JUMP_MAX_US
from aitbcd.settings import Plan, Settings


class Terms:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: The latest that the clock was known to be right.
        self.known_at = 0

    async def plan_of(self, job: Job) -> tuple[str, Plan]:
        """Return the plan that a job's results are kept under, and its name."""
        groups = await self._groups(job.owner.uid)
        name = plans.name_of(self._settings, job.owner.name, groups, job.plan)
        return name, plans.get(self._settings, name)

    async def _groups(self, uid: int) -> tuple[str, ...]:
        if not self._settings.groups:
            return ()
        groups = await users.groups_of(uid)
        # While nobody knows he is in all of them: what is kept too long can still be deleted.
        return tuple(self._settings.groups) if groups is None else groups

    async def expires_at(self, job: Job, finished_at: int) -> int:
        """Return when the results of a job that ends now expire."""
        _, plan = await self.plan_of(job)
        if finished_at < self.known_at - JUMP_MAX_US:
            # By a clock that went back years they would be gone as soon as it is right again.
            finished_at = self.known_at
        self.known_at = max(self.known_at, finished_at)
        return plans.expires_at(plan, finished_at)

    def charge_micro(self, job: Job, used_us: int) -> int:
        """Return what an attempt costs that took so long."""
        return pricing.charge_micro(
            self._settings.pricing, cpus=job.cpus, gpu_models=(), used_us=used_us
        )
