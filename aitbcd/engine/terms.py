"""What a job's end costs, and how long its results are kept: the configuration on one job."""

from __future__ import annotations

from aitbcd import plans, pricing, users
from aitbcd.model import Job, Owner
from aitbcd.retention import JUMP_MAX_US
from aitbcd.settings import Limits, Plan, Settings


class Terms:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: The latest that the clock was known to be right.
        self.known_at = 0
        #: By uid, what was last found.
        self._limits: dict[int, Limits] = {}

    async def plan_of(self, job: Job) -> tuple[str, Plan]:
        """Return the plan that a job's results are kept under, and its name."""
        groups = await self._groups(job.owner.uid)
        name = plans.name_of(self._settings, job.owner.name, groups, job.plan)
        return name, plans.get(self._settings, name)

    async def learn(self, owner: Owner) -> Limits:
        """Return what a user may have at a time, and keep it in mind for ``limits``."""
        groups = await self._groups(owner.uid)
        found = plans.limits_of(self._settings, owner.name, groups)
        self._limits[owner.uid] = found
        return found

    async def learn_again(self) -> None:
        """Learn anew of all who are known: the configuration has changed."""
        for uid in list(self._limits):
            if user := users.lookup(uid):
                await self.learn(Owner(uid, user.name))

    def limits(self, uid: int) -> Limits | None:
        """Return what a user may have, None where that was not asked for yet."""
        return self._limits.get(uid)

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

    def charge_micro(
        self, job: Job, gpu_models: tuple[str, ...], gpu_share: int, used_us: int
    ) -> int:
        """Return what an attempt costs that took so long on these GPUs, or its share of one."""
        return pricing.charge_micro(
            self._settings.pricing,
            cpus=job.cpus,
            gpu_models=gpu_models,
            gpu_share=gpu_share,
            used_us=used_us,
        )
