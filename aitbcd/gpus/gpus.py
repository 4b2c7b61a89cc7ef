"""The GPUs of this machine: looks when asked, hears of errors, says what stands in the way.

Nothing is polled: a look follows a question (about one a second), an XID error, the arrival of a
driver, or the end of a short wait that an earlier look began. Only while a driver is there and
fails is it tried again by the clock, with pauses that grow. A sample is a look at some GPUs, and
at no more than changes all the time there; whoever wants one asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from msgspec.structs import replace

from aitbcd import users
from aitbcd.clock import now_us
from aitbcd.devices import Gpu, GpuState, Inventory
from aitbcd.errors import AitbcError, NoSuchFile, Unavailable, WrongState
from aitbcd.gpus import advice, driver
from aitbcd.gpus.arrival import Arrival
from aitbcd.gpus.child import Child, ProbeEnded
from aitbcd.gpus.drains import Device, Drain, Drains, Xid
from aitbcd.gpus.facts import DeviceFacts, Fault, ProcessFacts, Report
from aitbcd.gpus.judge import Judge, Policy, summary
from aitbcd.gpus.recent import Recent
from aitbcd.settings import Gpus as Settings

_log = logging.getLogger(__name__)

#: A question that comes sooner after a look is answered from it. Whoever asks each second is
#: answered by a look each time.
FRESH_S = 0.8
#: Seconds that a question waits for a look. A driver that is slower is told as a problem.
PATIENCE_S = 2.0
#: As ``FRESH_S``, where the look would need a new probe: that costs a program's start.
_FRESH_FAILURE_S = 10.0
#: NVML's first call may load the driver into every GPU.
_FIRST_DEADLINE_FACTOR = 6
#: The pause before a driver that fails is tried again grows up to this multiple.
_RETRY_GROWTH_MAX = 16

#: Which job a process belongs to, on a GPU that these jobs have.
JobOf = Callable[[ProcessFacts, Collection[str]], str | None]
#: Told of all processes before that is asked.
Learn = Callable[[Iterable[ProcessFacts]], Awaitable[None]]


class Gpus:
    """``open`` before anything else. ``inventory`` is what the last look saw."""

    def __init__(
        self, settings: Settings, drains: Drains, job_of: JobOf, learn: Learn | None = None
    ) -> None:
        self.inventory = Inventory(now_us(), advice.awaited(), is_partial=True)
        self._settings = settings
        self._drains = drains
        self._job_of = job_of
        self._learn = learn
        policy = Policy(int(settings.foreign_grace_s * 1e6), settings.display_memory)
        self._judge = Judge(policy, drains, self._identify)
        self._names: dict[int, str] = {}
        #: What the last look saw; None while there is nothing to be asked.
        self._seen: Report | None = None
        self._listeners: list[Callable[[Inventory], None]] = []
        self._child: Child | None = None
        #: One that did not answer and cannot be ended; no other is started beside it.
        self._stuck: Child | None = None
        self._looking: asyncio.Task[None] | None = None
        self._sampling: asyncio.Task[bool] | None = None
        self._watchers: list[Callable[[Gpu], None]] = []
        #: By UUID, of what was sampled: when (monotonic) and the utilization.
        self._recent: dict[str, Recent] = {}
        self._looked_at = -math.inf
        self._is_first = True
        #: All GPUs have been seen: those that are not at present are known.
        self._has_seen_all = False
        #: What there is is known from a daemon before this one.
        self._is_recalled = drains.devices is not None
        self._judge.recall(device.lost(advice.awaited()) for device in drains.devices or ())
        #: What the record says, or was to say.
        self._recorded = drains.devices if drains.are_devices_of_this_boot else None
        #: When a driver that fails is asked again; when a GPU that was left is looked at again.
        self._retrying: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._retry_factor = 1
        self._arrival: Arrival | None = None
        self._deadline_s = settings.deadline_s
        #: Something happened during a look: look once more.
        self._is_stirred = False
        #: The next look is to be with a new probe.
        self._is_anew = False
        #: The probe hears of no more errors.
        self._is_deaf = False
        self._absence: str | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_closed = False

    # -- life -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Look for the first time, beside."""
        self._arrival = Arrival(self._on_arrival)
        self._look_beside()

    async def close(self) -> None:
        self._is_closed = True
        for timer in (self._retrying, self._settling):
            if timer is not None:
                timer.cancel()
        if self._arrival is not None:
            self._arrival.close()
        under_way = (self._looking, self._sampling, self._ending)
        tasks = [task for task in under_way if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._child is not None:
            await self._child.close()

    def listen(self, listener: Callable[[Inventory], None]) -> None:
        """Be told of every change that decides what may run, from the event loop."""
        self._listeners.append(listener)

    def on_seen(self, watcher: Callable[[Gpu], None]) -> None:
        """Be told of each GPU that jobs have, whenever it was looked at or sampled.

        While jobs run that is about once a second (``gpus.sample``), from the event loop. Its
        ``jobs`` have it, its ``processes`` are there now: those of jobs with their ``job_id``,
        those that nobody's job started with ``is_foreign``. One that is ``lost`` shows none.
        """
        self._watchers.append(watcher)

    def xids(self, gpu: Gpu) -> tuple[Xid, ...]:
        """Return the XID errors of a GPU, or of that which it is a part of, of this boot."""
        return self._drains.xids(gpu.mig.parent if gpu.mig else gpu.uuid)

    def oversee(
        self, jobs_on: Callable[[str], tuple[str, ...]], quarantine: Callable[[str], str | None]
    ) -> None:
        """Ask from now on, by UUID, which jobs have a GPU, and why it is not to be given."""
        self._judge.jobs_on = jobs_on
        self._judge.quarantine = quarantine

    def review(self) -> None:
        """Judge anew what the last look saw: a GPU was given, or taken back."""
        if self._seen is not None:
            self._publish(self._judged(self._seen, self.inventory.at))

    # -- what others ask --------------------------------------------------------------------------

    async def look(self, *, max_age_s: float = FRESH_S) -> Inventory:
        """Return what there is, at most this old, or older when the driver takes its time."""
        if not self._is_fresh(max_age_s) and (looking := self._look_beside()) is not None:
            await asyncio.wait({looking}, timeout=PATIENCE_S)
        return self.inventory

    async def sample(self, uuids: Collection[str]) -> bool:
        """Read what changes of some GPUs, into ``inventory``; False when nothing was to be had.

        For one who asks at a time. A driver that fails or hangs is told of as after a look, and
        not asked for this.
        """
        if self._looking is not None and not self._looking.done():
            # It sees them, too.
            await asyncio.wait({self._looking})
            is_seen = self._seen is not None
        elif self._child is None or self._is_closed:
            return False
        else:
            # A task of its own: who asks may go, and the answer must still be taken.
            self._sampling = sampling = asyncio.create_task(self._sample(self._child, uuids))
            await asyncio.wait({sampling})
            is_seen = not sampling.cancelled() and sampling.result()
        if is_seen:
            self._note_recent(uuids)
        return is_seen

    def recent(self, uuid: str) -> list[int | None]:
        """Return the utilization in each second of the last minute, None where none was sampled."""
        kept = self._recent.get(uuid)
        return kept.seconds(time.monotonic(), self._settings.sample_s) if kept else []

    @property
    def age_s(self) -> float:
        """Return how long ago the last look was over."""
        return time.monotonic() - self._looked_at

    def _is_fresh(self, max_age_s: float) -> bool:
        if self._child is None:
            max_age_s = max(max_age_s, min(_FRESH_FAILURE_S, self._settings.retry_s))
        return self.age_s <= max_age_s

    async def drain(self, uuid: str, reason: str, user: str) -> Gpu:
        """Let a GPU take no new job; what runs there goes on.

        Of one that is divided the first MIG device is returned, here and from ``resume``.

        Raises:
            NoSuchFile: there is no such GPU.
            StorageFull: nothing was changed.
        """
        found = await self._find(uuid)
        self._drains.drain(uuid, Drain(reason, user, now_us()))
        return await self._after_change(found[0])

    async def resume(self, uuid: str) -> Gpu:
        """Let a GPU take jobs again, with the faults that it has.

        Raises:
            NoSuchFile: there is no such GPU.
            WrongState: nothing that could be taken back keeps it from jobs.
            StorageFull: nothing was changed.
        """
        found = await self._find(uuid)
        self._check_resume(uuid, found)
        self._drains.resume(uuid, tuple(dict.fromkeys(one for gpu in found for one in gpu.faults)))
        return await self._after_change(found[0])

    def _check_resume(self, uuid: str, found: Sequence[Gpu]) -> None:
        drained = [gpu for gpu in found if gpu.state is GpuState.DRAINED]
        if not drained:
            gpu = found[0]
            raise WrongState(
                f"GPU {gpu.index} ({uuid}) is {gpu.state.value}, not drained",
                hint="see aitbcctl gpus",
                state=gpu.state.value,
            )
        gpu = drained[0]
        if gpu.mig and gpu.uuid == uuid and self._drains.drained(gpu.mig.parent):
            raise WrongState(
                f"the whole GPU of {uuid} is drained",
                hint=f"aitbcctl gpus resume {gpu.mig.parent}",
                state=gpu.state.value,
            )
        # Each by a wish of its own, which this one does not take back.
        own = [one for one in drained if one.uuid != uuid and self._drains.drained(one.uuid)]
        if len(own) == len(drained) and not self._drains.drained(uuid):
            raise WrongState(
                f"the GPU {uuid} is not drained as a whole, {len(drained)} of its MIG devices are",
                hint=f"aitbcctl gpus resume {gpu.uuid}",
                state=gpu.state.value,
            )

    async def _find(self, uuid: str) -> list[Gpu]:
        """Return a GPU, or where it is divided its MIG devices."""
        inventory = await self.look()
        if gpu := inventory.find(uuid):
            return [gpu]
        parts = [gpu for gpu in inventory.gpus if gpu.mig and gpu.mig.parent == uuid]
        if not parts:
            known = ", ".join(gpu.uuid for gpu in inventory.gpus) or "there are none"
            raise NoSuchFile(f"there is no GPU {uuid[:80]}", hint=f"GPUs here: {known}")
        return parts

    async def _after_change(self, gpu: Gpu) -> Gpu:
        return (await self.look(max_age_s=-1)).find(gpu.uuid) or gpu

    # -- looking ----------------------------------------------------------------------------------

    def _look_beside(self) -> asyncio.Task[None] | None:
        """Begin a look if none goes on; return it, None where nothing can be asked."""
        if self._is_closed or self._stuck is not None:
            return None
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return self._looking

    async def _look(self) -> None:
        try:
            if self._sampling is not None:
                # One question at a time.
                await asyncio.wait({self._sampling})
            if self._stuck is not None:
                return
            if self._is_anew and self._child is not None:
                self._child.kill()
                self._child = None
            self._is_anew = False
            if self._child is None and driver.library(os.environ) is None:
                hardware = driver.hardware()
                self._absence = self._absence or advice.absent(hardware)
                self._has_seen_all = True
                if not hardware and not self._drains.are_devices_of_this_boot:
                    self._judge.recall(())
                self._fail(self._absence, is_tried_again=False)
            else:
                report = await self._report()
                names = await _names_of(_uids_in(report.devices))
                await self._learn_of(report.devices)
                # Only now: a review meanwhile needs the names of what was seen before.
                self._names = names
                self._succeed(report, now_us())
        except TimeoutError:
            self._give_up()
        except ProbeEnded as ended:
            self._child = None
            self._fail(_why(ended))
        except OSError as problem:
            self._fail(f"the NVIDIA driver could not be asked: {problem.strerror}")
        except Exception as problem:
            # No thread is to be had for a moment, say. This must not have been the last look.
            why = f"the GPUs could not be looked at: {problem!r}"
            if why != self.inventory.problem:
                _log.exception("gpus: a look failed")
            self._fail(why)
        finally:
            self._looked_at = time.monotonic()
            if self._is_stirred:
                self._is_stirred = False
                asyncio.get_running_loop().call_soon(self._look_beside)

    async def _report(self) -> Report:
        try:
            return await self._ask()
        except ProbeEnded as ended:
            if not ended.is_outdated:
                raise
        # Another library has been installed: it decides whether programs can use the driver.
        self._child = None
        return await self._ask()

    async def _ask(self) -> Report:
        self._deadline_s = self._settings.deadline_s
        if self._child is None:
            self._is_deaf = False
            self._child = await Child.start(self._on_fault)
            self._deadline_s *= _FIRST_DEADLINE_FACTOR
        async with asyncio.timeout(self._deadline_s):
            return await self._child.ask()

    async def _sample(self, child: Child, uuids: Iterable[str]) -> bool:
        self._deadline_s = self._settings.deadline_s
        try:
            async with asyncio.timeout(self._deadline_s):
                devices = await child.sample(uuids)
        except TimeoutError:
            self._give_up()
            return False
        except ProbeEnded as ended:
            self._child = None
            if ended.is_outdated:
                self._look_beside()
            else:
                self._fail(_why(ended))
            return False
        self._names |= await _names_of(_uids_in(devices) - self._names.keys())
        await self._learn_of(devices)
        if self._seen is None:
            return False
        found = {device.uuid: device for device in devices}
        seen = tuple(found.get(device.uuid, device) for device in self._seen.devices)
        self._succeed(replace(self._seen, devices=seen), self.inventory.at)
        return True

    def _note_recent(self, uuids: Iterable[str]) -> None:
        now = time.monotonic()
        for gpu in filter(None, map(self.inventory.find, uuids)):
            if gpu.utilization is not None:
                self._recent.setdefault(gpu.uuid, Recent()).add(now, gpu.utilization)

    def _judged(self, report: Report, at: int) -> Inventory:
        gpus = self._judge.gpus(report.devices, now_us())
        problem = _problem_of(report, gpus)
        is_partial = not self._has_seen_all
        return Inventory(at, problem, report.driver_version, report.cuda_version, gpus, is_partial)

    def _succeed(self, report: Report, at: int) -> None:
        self._seen = report
        if not report.unreachable:
            self._has_seen_all = True
            if self._is_recalled and not self._drains.are_devices_of_this_boot:
                # What is not there after a reboot was taken out.
                self._judge.recall(())
            self._is_recalled = False
        self._has_seen_all |= self._is_recalled
        inventory = self._judged(report, at)
        if not report.unreachable:
            self._record(inventory)
        self._publish(inventory)
        for gpu in inventory.gpus:
            if gpu.jobs:
                for watcher in self._watchers:
                    watcher(gpu)
        is_failing = any(device.failure is not None for device in report.devices)
        is_failing = is_failing or any(map(self._is_ailing, inventory.gpus))
        if inventory.problem is not None or is_failing or self._is_deaf:
            self._retry()
        else:
            self._retry_factor = 1
            self._forget_retry()
        if self._judge.is_settling and self._settling is None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(self._settings.foreign_grace_s, self._settle)

    def _record(self, inventory: Inventory) -> None:
        """Keep for the next daemon what there is."""
        devices = tuple(map(Device.of, inventory.gpus))
        if devices != self._recorded and all(gpu.memory_total for gpu in inventory.gpus):
            self._recorded = devices
            try:
                self._drains.note_devices(devices)
            except AitbcError as problem:
                _log.warning("gpus: %s", problem.detail)

    def _is_ailing(self, gpu: Gpu) -> bool:
        """Tell whether a GPU may be well again without our being told: after a reset, say."""
        if gpu.state is GpuState.DRAINED:
            wishes = (gpu.uuid, gpu.mig.parent if gpu.mig else gpu.uuid)
            return not any(map(self._drains.drained, wishes))
        return gpu.state is GpuState.LOST

    def _fail(self, problem: str, *, is_tried_again: bool = True) -> None:
        self._seen = None
        self._has_seen_all |= self._is_recalled
        if is_tried_again:
            # Before others are told, so that it is tried again whatever they make of it.
            self._retry()
        gpus = self._judge.unreachable(problem)
        is_partial = not self._has_seen_all
        self._publish(Inventory(now_us(), problem, gpus=gpus, is_partial=is_partial))

    def _give_up(self) -> None:
        """The driver hangs: end the probe, and ask again when that is gone."""
        assert self._child is not None
        self._stuck, self._child = self._child, None
        self._stuck.kill()
        self._fail(advice.silent(self._deadline_s), is_tried_again=False)
        self._ending = asyncio.create_task(self._await_the_end(self._stuck))

    async def _await_the_end(self, stuck: Child) -> None:
        await stuck.wait()
        self._stuck = None
        self._retry()

    def _publish(self, inventory: Inventory) -> None:
        before, self.inventory = self.inventory, inventory
        is_news = self._is_first or before.problem != inventory.problem
        self._is_first = False
        if is_news and inventory.problem and inventory.gpus:
            _log.warning("gpus: %s", inventory.problem)
        if is_news or summary(before.gpus) != summary(inventory.gpus):
            for listener in self._listeners:
                listener(inventory)

    # -- looking again ----------------------------------------------------------------------------

    def _settle(self) -> None:
        self._settling = None
        self._stir()

    def _retry(self) -> None:
        """Look anew after a while, however often somebody asks until then."""
        if self._retrying is None and not self._is_closed:
            delay_s = self._settings.retry_s * self._retry_factor
            self._retry_factor = min(2 * self._retry_factor, _RETRY_GROWTH_MAX)
            self._retrying = asyncio.get_running_loop().call_later(delay_s, self._look_anew)

    def _forget_retry(self) -> None:
        if self._retrying is not None:
            self._retrying.cancel()
            self._retrying = None

    def _look_anew(self) -> None:
        """Look with a new probe: NVML finds a GPU that came back only when it is initialized."""
        self._retrying = None
        if self._looking is not None and not self._looking.done():
            self._retry()
            return
        self._is_anew = True
        self._look_beside()

    # -- what the probe says ----------------------------------------------------------------------

    def _on_fault(self, fault: Fault | None) -> None:
        if fault is None:
            self._is_deaf = True
        else:
            _log.warning("gpu=%s xid=%d", fault.uuid, fault.xid)
            try:
                self._drains.add_xid(fault.uuid, Xid(now_us(), fault.xid))
            except AitbcError as problem:
                _log.error("gpu=%s %s", fault.uuid, problem.detail)
        self._stir()

    def _on_arrival(self) -> None:
        self._retry_factor = 1
        self._forget_retry()
        self._stir()

    def _stir(self) -> None:
        if self._looking is not None and not self._looking.done():
            self._is_stirred = True
        else:
            self._look_beside()

    async def _learn_of(self, devices: Iterable[DeviceFacts]) -> None:
        if self._learn is not None:
            await self._learn(one for device in devices for one in device.processes)

    def _identify(
        self, process: ProcessFacts, held: Collection[str]
    ) -> tuple[str | None, str | None]:
        if process.uid is None:
            return None, None
        return self._names[process.uid], self._job_of(process, held)


def _uids_in(devices: Iterable[DeviceFacts]) -> set[int]:
    found = {one.uid for device in devices for one in device.processes}
    return {uid for uid in found if uid is not None}


async def _names_of(uids: Iterable[int]) -> dict[int, str]:
    """Return the names of users; the user database may take its time."""
    return {uid: await _name_of(uid) for uid in uids}


async def _name_of(uid: int) -> str:
    try:
        user = await users.find(uid)
    except Unavailable:
        user = None
    return user.name if user else f"uid {uid}"


def _why(ended: ProbeEnded) -> str:
    if (failure := ended.failure) is None:
        return advice.crashed(ended.returncode)
    library = driver.library(os.environ)
    return advice.unusable(
        failure.code,
        failure.text,
        library_version=driver.library_version(library) if library else None,
        module_version=driver.module_version(),
    )


def _problem_of(report: Report, gpus: tuple[Gpu, ...]) -> str | None:
    if report.unreachable:
        failures = [(one.index, one.failure) for one in report.unreachable]
        physical = {device.index for device in report.devices}
        return advice.unreachable(failures, len(failures) + len(physical))
    return None if gpus else advice.nothing_found(report.driver_version)
