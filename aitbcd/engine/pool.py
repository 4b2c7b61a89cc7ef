"""The GPUs that jobs have been given, and when they are free again.

A job's GPU is free only when the driver says that its memory is, as it was before the job: what a
process that escaped still holds would fail the next job. Until then it is quarantined. What it is
to be like is kept over restarts of the daemon; while the driver cannot tell, nothing is taken back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from aitbcd.allotment import Held, Stock
from aitbcd.devices import ANYWHERE, Gpu, GpuState, Inventory, Near, Process, unaccounted
from aitbcd.engine.holds import Holds, Kept
from aitbcd.gpus import Gpus
from aitbcd.model import WHOLE, Job
from aitbcd.settings import Gpus as Settings
from aitbcd.units import format_size

_log = logging.getLogger(__name__)

#: The driver's own bookkeeping of a GPU that programs have used, and of each that is there.
_SLACK, _SLACK_EACH = 256 << 20, 32 << 20
#: Pauses between looks at a GPU that is not free yet: first, and at most.
_LOOK_FIRST_S, _LOOK_MOST_S = 0.1, 10.0
#: How many looks may find something before what is left is ended, and before it is told.
_SWEEP_AFTER, _TELL_AFTER = 2, 4
_PIDS_TOLD = 4


@dataclass(slots=True)
class _Hold:
    job: Job
    uuids: list[str]
    #: Bytes for which nobody accounted when it was given, by UUID; nothing where that is unknown.
    before: dict[str, int] = field(default_factory=dict)
    #: The job is, and waits only for its GPUs to be as before.
    is_over: bool = False


class Pool:
    def __init__(
        self,
        gpus: Gpus,
        settings: Settings,
        holds: Holds,
        *,
        sweep: Callable[[Job], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_change: Callable[[], None],
    ) -> None:
        self._gpus = gpus
        self._settings = settings
        #: Ends what a job has left running.
        self._sweep = sweep
        self._spawn = spawn
        #: Told that more, or less, can be given.
        self._on_change = on_change
        #: By number and attempt: the next attempt may begin while the last one's are not free yet.
        self._holds: dict[tuple[int, int], _Hold] = {}
        self._quarantined: dict[str, str] = {}
        #: What ``stock`` returned last, and what it was made of.
        self._stock: tuple[Inventory, tuple[object, ...], Stock] | None = None
        self._file = holds
        self._kept = {(kept.number, kept.attempt): kept for kept in holds.read()}
        #: Wakes whoever waits for the driver to tell of a GPU again.
        self._stirred = asyncio.Event()
        gpus.oversee(self.jobs_on, self._quarantined.get)
        gpus.listen(self._on_inventory)

    def _on_inventory(self, _: Inventory) -> None:
        self._stirred.set()
        self._stirred.clear()
        self._on_change()

    @property
    def inventory(self) -> Inventory:
        return self._gpus.inventory

    @property
    def age_s(self) -> float:
        """Return how old the inventory is."""
        return self._gpus.age_s

    async def look(self, *, max_age_s: float) -> Inventory:
        return await self._gpus.look(max_age_s=max_age_s)

    def jobs_on(self, uuid: str) -> tuple[str, ...]:
        return tuple(hold.job.job_id for hold in self._holders(uuid))

    def holders(self, uuids: Iterable[str]) -> list[Job]:
        """Return the jobs that have one of these GPUs."""
        wanted = set(uuids)
        return [hold.job for hold in self._holds.values() if wanted & set(hold.uuids)]

    def _holders(self, uuid: str) -> list[_Hold]:
        return [hold for hold in self._holds.values() if uuid in hold.uuids]

    def stock(self) -> Stock:
        """Return what there is to give; made once for all that ask until something changes."""
        held = tuple((tuple(hold.uuids), hold.job.vram) for hold in self._holds.values())
        made_of = held, self._settings.foreign, self._settings.shares
        known = self._stock
        if known is None or known[0] is not self.inventory or known[1] != made_of:
            known = self._stock = self.inventory, made_of, self._made_stock(held)
        return known[2]

    def _made_stock(self, held: tuple[tuple[tuple[str, ...], int | None], ...]) -> Stock:
        gpus, policy = self.inventory.gpus, self._settings.foreign
        avoided: frozenset[str] = frozenset()
        if policy != "wait":
            foreign = {gpu.uuid for gpu in gpus if gpu.has_stranger}
            gpus = tuple(_as_left_alone(gpu) if gpu.uuid in foreign else gpu for gpu in gpus)
            avoided = frozenset(foreign if policy == "avoid" else ())
        return Stock.of(
            gpus, [Held(*each) for each in held], avoided=avoided, shares_max=self._settings.shares
        )

    def models(self, uuids: Iterable[str]) -> tuple[str, ...]:
        found = (self.inventory.find(uuid) for uuid in uuids)
        return tuple(gpu.name for gpu in found if gpu)

    def near(self, job: Job) -> Near:
        """Return what is near to a job's GPUs, where it is to run.

        Anywhere if the cores are too few for all jobs that are to run on some of them: these would
        be in each other's way while other cores are idle.
        """
        if not self._settings.numa:
            return ANYWHERE
        cores = self._cores(job.gpu_uuids)
        held = [hold.job for hold in self._holds.values()]
        there = [each for each in held if cores & self._cores(each.gpu_uuids)]
        if sum(each.cpus for each in there) > len(cores):
            return ANYWHERE
        found = (self.inventory.find(uuid) for uuid in job.gpu_uuids)
        nodes = {gpu.numa_node for gpu in found if gpu and gpu.numa_node is not None}
        return Near(tuple(sorted(cores)), tuple(sorted(nodes)))

    def _cores(self, uuids: Iterable[str]) -> set[int]:
        found = (self.inventory.find(uuid) for uuid in uuids)
        return {core for gpu in found if gpu for core in gpu.cpus}

    def share(self, job: Job) -> int:
        """Return how many millionths of each of its GPUs a job has: of its memory."""
        found = self.inventory.find(job.gpu_uuids[0]) if job.vram and job.gpu_uuids else None
        if found is None or not job.vram or not found.memory_total:
            return WHOLE
        return min(WHOLE, -(-job.vram * WHOLE // found.memory_total))

    def take(self, job: Job) -> None:
        """Give a job the GPUs that were chosen for it."""
        if job.gpu_uuids:
            found = filter(None, map(self.inventory.find, job.gpu_uuids))
            levels = {gpu.uuid: self._unaccounted(gpu) for gpu in found}
            before = {uuid: level for uuid, level in levels.items() if level is not None}
            self._holds[_key(job)] = _Hold(job, list(job.gpu_uuids), before)
            self._keep()
            self._gpus.review()

    def take_again(self, job: Job) -> None:
        """Note what a job has had since before this daemon."""
        if job.gpu_uuids:
            kept = self._kept.pop(_key(job), None)
            before = kept.before if kept and kept.job_id == job.job_id else {}
            self._holds[_key(job)] = _Hold(job, list(job.gpu_uuids), before)

    def not_given_back(self) -> list[Kept]:
        """Return what jobs had that nobody took again: they are over, their GPUs may not be free.

        Each is to be taken again and given back.
        """
        return list(self._kept.values())

    def _keep(self) -> None:
        self._file.write(
            Kept(hold.job.number, hold.job.job_id, hold.job.attempt, tuple(hold.uuids), hold.before)
            for hold in self._holds.values()
        )

    def give_back(self, job: Job) -> None:
        """Take back what a job had, as soon as nothing is left of it there."""
        if hold := self._holds.get(_key(job)):
            hold.is_over = True
            self._spawn(self._release(hold))

    async def _release(self, hold: _Hold) -> None:
        pause_s, looks = _LOOK_FIRST_S, 0
        while True:
            is_seen = await self._look_now()
            hidden = set(filter(self._is_hidden, hold.uuids))
            if len(hidden) == len(hold.uuids):
                await self._stirred.wait()
                continue
            if is_seen:
                left = self._left_on(hold)
                self._let_go(hold, {*left, *hidden})
                if not hold.uuids:
                    return
                looks += 1
                if looks == _SWEEP_AFTER or (looks > _SWEEP_AFTER and self._runs_on(hold)):
                    await self._sweep(hold.job)
                if looks >= _TELL_AFTER:
                    self._quarantine(hold, left)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_MOST_S)

    async def _look_now(self) -> bool:
        """Look; False when the driver takes so long that what is known is from before."""
        asked = time.monotonic()
        await self._gpus.look(max_age_s=-1)
        return self._gpus.age_s <= time.monotonic() - asked

    def _is_hidden(self, uuid: str) -> bool:
        """Tell whether the driver cannot say at present what is on a GPU."""
        gpu = self.inventory.find(uuid)
        return self.inventory.problem is not None if gpu is None else gpu.state is GpuState.LOST

    def _runs_on(self, hold: _Hold) -> bool:
        """Tell whether a process of a job that is over is there and alive."""
        found = filter(None, map(self.inventory.find, hold.uuids))
        processes = (one for gpu in found for one in gpu.processes)
        return any(one.job_id == hold.job.job_id and not one.is_gone for one in processes)

    def _left_on(self, hold: _Hold) -> dict[str, str]:
        """Return by UUID what keeps a GPU from being free."""
        found = {uuid: self._left(hold, self.inventory.find(uuid)) for uuid in hold.uuids}
        return {uuid: left for uuid, left in found.items() if left}

    def _left(self, hold: _Hold, gpu: Gpu | None) -> str | None:
        if gpu is None or gpu.state is GpuState.LOST:
            return None
        if own := [one for one in gpu.processes if one.job_id == hold.job.job_id]:
            return _still_there(own)
        before, now = hold.before.get(gpu.uuid), self._unaccounted(gpu)
        if before is None or now is None or not self._are_others_seen(gpu):
            return None
        if now > before + _SLACK + _SLACK_EACH * len(gpu.processes):
            gone = [one for one in gpu.processes if one.is_gone]
            by = f"process {_numbers(gone)}, gone" if gone else "no process that can be seen"
            return f"{format_size(now - before)} of its memory are still held, by {by}"
        return None

    def _unaccounted(self, gpu: Gpu) -> int | None:
        return unaccounted(gpu, self._settings.display_memory)

    def _are_others_seen(self, gpu: Gpu) -> bool:
        """Tell whether each job that still runs there is seen there.

        One that is not may have what nobody accounts for, as where the driver lists no processes.
        """
        seen = {one.job_id for one in gpu.processes if not one.is_gone}
        return all(each.is_over or each.job.job_id in seen for each in self._holders(gpu.uuid))

    def _let_go(self, hold: _Hold, left: set[str]) -> None:
        gone = [uuid for uuid in hold.uuids if uuid not in left]
        if not gone:
            return
        hold.uuids = [uuid for uuid in hold.uuids if uuid in left]
        # The same attempt has new ones where a killed daemon's start of it was not committed.
        if not hold.uuids and self._holds.get(_key(hold.job)) is hold:
            del self._holds[_key(hold.job)]
        self._keep()
        told = [uuid for uuid in gone if self._quarantined.pop(uuid, None)]
        for uuid in told:
            _log.warning("gpu=%s is free again", uuid)
        # As it is now, without the job on it.
        self._gpus.review()
        self._on_change()

    def _quarantine(self, hold: _Hold, left: dict[str, str]) -> None:
        for uuid, what in left.items():
            reason = f"{hold.job.job_id} of {hold.job.owner.name} has ended, but {what}"
            if uuid not in self._quarantined:
                _log.warning("gpu=%s is quarantined: %s", uuid, reason)
            self._quarantined[uuid] = reason
        self._gpus.review()

    def used_past_the_queue(self) -> list[Gpu]:
        """Return the GPUs that a stranger uses, and which could be given without him."""
        return [
            gpu
            for gpu in self.inventory.gpus
            if gpu.has_stranger and all(hold.job.vram for hold in self._holders(gpu.uuid))
        ]

    def left_alone_unseen(self) -> list[Gpu]:
        """Return the GPUs that nobody can get, of whose change nobody tells us.

        The end of a job that has a whole one makes us look anyway, and a lost one is looked for
        with pauses of its own.
        """
        used = {gpu.uuid for gpu in self.used_past_the_queue()}
        taken = {uuid for hold in self._holds.values() for uuid in hold.uuids} - used
        return [
            gpu
            for gpu in self.inventory.gpus
            if gpu.state not in (GpuState.FREE, GpuState.LOST) and gpu.uuid not in taken
        ]


def _as_left_alone(gpu: Gpu) -> Gpu:
    """Return a GPU as it would be without the stranger there."""
    state = GpuState.FREE if gpu.state is GpuState.FOREIGN else gpu.state
    return replace(gpu, state=state, reason=None)


def _key(job: Job) -> tuple[int, int]:
    return job.number, job.attempt


def _still_there(processes: list[Process]) -> str:
    """Say which processes hold how much."""
    largest = max(processes, key=lambda one: one.memory or 0)
    command = f"{largest.command or '?'}{', gone' if largest.is_gone else ''}"
    memory = sum(one.memory or 0 for one in processes)
    held = format_size(memory) if memory else "a part of it"
    if len(processes) == 1:
        return f"process {largest.pid} ({command}) still holds {held}"
    return f"process {largest.pid} ({command}) and {len(processes) - 1} more still hold {held}"


def _numbers(processes: list[Process]) -> str:
    """Return their pids, the first few."""
    more = ", ..." if len(processes) > _PIDS_TOLD else ""
    return ", ".join(str(one.pid) for one in processes[:_PIDS_TOLD]) + more
