"""What a GPU is good for, out of what the driver says of it. No I/O: ``now`` comes in.

Keeps what one look cannot tell: GPUs that were there before, since when a GPU is left alone, and
whose a process was that is dead and listed all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from aitbcd.devices import Gpu, GpuState, Process, unaccounted
from aitbcd.gpus import advice
from aitbcd.gpus.drains import Drains
from aitbcd.gpus.facts import DeviceFacts, ProcessFacts
from aitbcd.units import format_size

#: More than this held and no process to be seen is a process that is hidden from us, or a leak.
UNSEEN_MEMORY = 1 << 30
#: Serves other processes, which are listed themselves.
_SERVERS = ("nvidia-cuda-mps-server", "nvidia-cuda-mps-control")

#: Who a process is, on a GPU that these jobs have: a name for its uid, and its job.
Identify = Callable[[ProcessFacts, tuple[str, ...]], tuple[str | None, str | None]]


class Policy(Struct, frozen=True):
    #: Microseconds that a GPU has to be without foreign processes before it is free again.
    foreign_grace: int
    #: Bytes that a process may hold that only draws.
    display_memory: int


class _Trace(Struct, frozen=True):
    """The last foreign use of a GPU."""

    reason: str
    #: When it was first seen to be over; None while it goes on.
    over_since: int | None = None


class Judge:
    def __init__(self, policy: Policy, drains: Drains, identify: Identify) -> None:
        self._policy = policy
        self._drains = drains
        self._identify = identify
        #: By UUID: the jobs that were given it; why it is not to be given.
        self.jobs_on: Callable[[str], tuple[str, ...]] = lambda uuid: ()
        self.quarantine: Callable[[str], str | None] = lambda uuid: None
        self._known: dict[str, Gpu] = {}
        self._traces: dict[str, _Trace] = {}
        #: By UUID and pid: the processes of jobs that the last look saw.
        self._of_jobs: dict[str, dict[int, Process]] = {}

    def gpus(self, devices: Iterable[DeviceFacts], now: int) -> tuple[Gpu, ...]:
        """Return all GPUs, those that were there before included."""
        found = {facts.uuid: self._gpu(facts, now) for facts in devices}
        parents = {gpu.mig.parent for gpu in found.values() if gpu.mig}
        missing = (
            _lost(gpu, advice.gone())
            for gpu in self._known.values()
            # MIG devices come and go, and take the place of their GPU.
            if gpu.uuid not in found and gpu.mig is None and gpu.uuid not in parents
        )
        self._known = found | {gpu.uuid: gpu for gpu in missing}
        return self._ordered()

    def recall(self, gpus: Iterable[Gpu]) -> None:
        """Know these from before, and no others."""
        self._known = {gpu.uuid: gpu for gpu in gpus}

    def unreachable(self, problem: str) -> tuple[Gpu, ...]:
        """Return the GPUs as they are while the driver cannot be asked."""
        self._known = {uuid: _lost(gpu, problem) for uuid, gpu in self._known.items()}
        return self._ordered()

    @property
    def is_settling(self) -> bool:
        """True while a GPU is foreign only because it was a moment ago."""
        return any(trace.over_since is not None for trace in self._traces.values())

    def _ordered(self) -> tuple[Gpu, ...]:
        return tuple(sorted(self._known.values(), key=_place))

    def _gpu(self, facts: DeviceFacts, now: int) -> Gpu:
        held = self.jobs_on(facts.uuid)
        before = self._known.get(facts.uuid)
        processes = self._processes(facts, held)
        seen = (one.job_id for one in processes if one.job_id)
        gpu = Gpu(
            index=facts.index,
            uuid=facts.uuid,
            name=facts.name,
            bus_id=facts.bus_id,
            # One that fails does not say.
            memory_total=facts.memory_total or (before.memory_total if before else 0),
            memory_used=facts.memory_used,
            state=GpuState.FREE,
            compute_capability=facts.compute_capability,
            power_limit=facts.power_limit,
            power=facts.power,
            utilization=facts.utilization,
            temperature=facts.temperature,
            energy=facts.energy,
            sm_clock=facts.sm_clock,
            memory_clock=facts.memory_clock,
            numa_node=facts.numa_node,
            cpus=facts.cpus,
            links=facts.links,
            mig=facts.mig,
            faults=self._faults(facts),
            jobs=tuple(dict.fromkeys((*held, *seen))),
            processes=processes,
        )
        state, reason = self._state(gpu, facts, self._foreign_use(gpu, now))
        return replace(gpu, state=state, reason=reason)

    def _processes(self, facts: DeviceFacts, held: tuple[str, ...]) -> tuple[Process, ...]:
        known = self._of_jobs.get(facts.uuid, {})
        found = []
        for one in facts.processes:
            before = known.get(one.pid)
            if one.uid is None and before and before.job_id in held:
                # A driver may list the dead, with what it has not taken back.
                found.append(replace(before, user=None, memory=one.memory))
            else:
                found.append(self._process(one, held))
        self._of_jobs[facts.uuid] = {one.pid: one for one in found if one.job_id}
        return tuple(found)

    def _process(self, facts: ProcessFacts, held: tuple[str, ...]) -> Process:
        user, job_id = self._identify(facts, held)
        is_drawing = not facts.is_compute and (facts.memory or 0) <= self._policy.display_memory
        is_server = (facts.command or "").startswith(_SERVERS)
        return Process(
            facts.pid,
            user,
            facts.command,
            facts.memory,
            facts.since,
            job_id,
            is_foreign=job_id is None and not is_drawing and not is_server,
        )

    def _state(
        self, gpu: Gpu, facts: DeviceFacts, foreign: str | None
    ) -> tuple[GpuState, str | None]:
        if facts.failure == advice.RESET_REQUIRED:
            return GpuState.DRAINED, advice.needs_reset(gpu.uuid)
        if facts.failure is not None:
            return GpuState.LOST, advice.lost(facts.failure)
        if (drain := self._drain(gpu)) is not None:
            return GpuState.DRAINED, drain
        if facts.is_divided:
            return GpuState.DRAINED, advice.divided()
        if (quarantine := self.quarantine(gpu.uuid)) is not None:
            return GpuState.QUARANTINED, quarantine
        if gpu.jobs:
            return GpuState.BUSY, foreign
        return (GpuState.FOREIGN, foreign) if foreign else (GpuState.FREE, None)

    # -- drained ----------------------------------------------------------------------------------

    def _drain(self, gpu: Gpu) -> str | None:
        for uuid in _names(gpu):
            if (drain := self._drains.drained(uuid)) is not None:
                return f"{drain.reason} (drained by {drain.user})"
        accepted = {fault for uuid in _names(gpu) for fault in self._drains.accepted(uuid)}
        faults = [fault for fault in gpu.faults if fault not in accepted]
        return advice.faulty(faults, _names(gpu)[-1]) if faults else None

    def _faults(self, facts: DeviceFacts) -> tuple[str, ...]:
        faults = advice.faults_of_memory(
            facts.uncorrected_errors,
            is_pending=facts.is_remap_pending,
            has_failed=facts.has_remap_failed,
        )
        physical = facts.mig.parent if facts.mig else facts.uuid
        xids = {one.xid for one in self._drains.xids(physical)}
        faults += [fault for xid in sorted(xids) if (fault := advice.fault_of_xid(xid))]
        return tuple(faults)

    # -- foreign ----------------------------------------------------------------------------------

    def _foreign_use(self, gpu: Gpu, now: int) -> str | None:
        """Return who uses it past the queue, or did until a moment ago."""
        if reason := _use_past_the_queue(gpu, self._policy.display_memory):
            self._traces[gpu.uuid] = _Trace(reason)
            return reason
        trace = self._traces.get(gpu.uuid)
        if trace is None:
            return None
        if trace.over_since is None:
            trace = self._traces[gpu.uuid] = replace(trace, over_since=now)
        # A clock that was set back must not keep it for ever.
        if not 0 <= now - (trace.over_since or now) < self._policy.foreign_grace:
            del self._traces[gpu.uuid]
            return None
        return f"{trace.reason}, a moment ago"


def _names(gpu: Gpu) -> tuple[str, ...]:
    """Return the UUIDs under which it may be drained: its own, and its GPU's."""
    return (gpu.uuid, gpu.mig.parent) if gpu.mig else (gpu.uuid,)


def _place(gpu: Gpu) -> tuple[object, ...]:
    part = (gpu.mig.gpu_instance, gpu.mig.compute_instance) if gpu.mig else (-1, -1)
    return gpu.index, part, gpu.uuid


def _lost(gpu: Gpu, reason: str) -> Gpu:
    return replace(
        gpu,
        state=GpuState.LOST,
        reason=reason,
        memory_used=0,
        utilization=None,
        power=None,
        temperature=None,
        sm_clock=None,
        memory_clock=None,
        processes=(),
    )


def _use_past_the_queue(gpu: Gpu, bystander_max: int) -> str | None:
    foreign = [one for one in gpu.processes if one.is_foreign]
    if foreign:
        foreign.sort(key=lambda one: -(one.memory or 0))
        more = len(foreign) - 1
        rest = f" and {more} more process{'' if more == 1 else 'es'}" if more else ""
        return f"{_described(foreign[0])}{rest}"
    unseen = unaccounted(gpu, bystander_max) or 0
    if unseen > UNSEEN_MEMORY and all(one.is_bystander for one in gpu.processes):
        held = format_size(unseen)
        return f"{held} of its memory are held by no process that can be seen, as in a container"
    return None


def _described(process: Process) -> str:
    whose = f"{process.user}'s" if process.user else "somebody's"
    command = f" ({process.command})" if process.command else ""
    memory = f" holds {format_size(process.memory)}" if process.memory else " uses it"
    return f"{whose} process {process.pid}{command}{memory}"


def summary(gpus: Iterable[Gpu]) -> Mapping[str, object]:
    """Return what of the GPUs decides what may run: changes of it are told."""
    return {gpu.uuid: (gpu.state, gpu.reason, gpu.jobs) for gpu in gpus}
