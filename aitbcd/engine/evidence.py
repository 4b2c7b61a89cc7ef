"""What is seen of a job's GPUs while it runs or waits: kept for its end, told in its events.

When a job has failed its processes are gone, so what looks and samples saw before is all there is.
A stranger on a GPU, and what is wrong with one, becomes an event of the jobs that have it, or wait
for it: once for each process and job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from aitbcd import wire
from aitbcd.causes import Clues, whose
from aitbcd.clock import now_us
from aitbcd.devices import XIDS_THAT_NEED_A_RESET, Gpu, GpuState, Process, meaning_of_xid
from aitbcd.errors import AitbcError
from aitbcd.feed import Feed
from aitbcd.gpus import Gpus, Xid
from aitbcd.model import EventKind, Job, SeenGpu, SeenProcess, SeenXid
from aitbcd.store import Note, Store
from aitbcd.units import format_size

_log = logging.getLogger(__name__)

#: Of how many notes it is kept in mind that they were made; the store knows it of all.
_KNOWN_MAX = 4096
#: On a shared GPU the driver does not say whose program made an error: one that goes on for
#: longer than this (microseconds) did not.
_SURVIVED_US = 60_000_000
#: Strangers that are kept of an attempt.
_STRANGERS_MAX = 64


@dataclass(slots=True)
class Seen:
    """What was seen of the GPUs of one attempt while it ran."""

    job: Job
    #: By UUID, as they were when a process of the job was on them last; and when that was.
    gpus: dict[str, SeenGpu] = field(default_factory=dict)
    at: int | None = None
    #: By UUID, the faults that they had before.
    faults: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: By pid and start, at its largest.
    foreign: dict[tuple[int, int | None], SeenProcess] = field(default_factory=dict)


class Evidence:
    def __init__(
        self,
        gpus: Gpus,
        store: Store,
        feed: Feed,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._gpus = gpus
        self._store = store
        self._feed = feed
        self._spawn = spawn
        self._attempts: dict[tuple[int, int], Seen] = {}
        #: Notes that were made: number, attempt, and what they are about.
        self._known: set[tuple[int, int, str]] = set()
        gpus.on_seen(self._on_seen)

    def open(self, job: Job) -> None:
        """Watch the GPUs of an attempt from now on."""
        if job.gpu_uuids:
            found = map(self._gpus.inventory.find, job.gpu_uuids)
            faults = {gpu.uuid: gpu.faults for gpu in found if gpu}
            self._attempts[job.number, job.attempt] = Seen(job, faults=faults)

    def open_again(self, job: Job) -> None:
        """Watch those of an attempt that was there before this daemon, if we do not yet."""
        if (job.number, job.attempt) in self._attempts:
            return
        self.open(job)
        if seen := self._attempts.get((job.number, job.attempt)):
            self._spawn(self._remember(seen))

    def take(self, job: Job) -> Seen:
        """Return what was seen of an attempt whose processes are gone, and watch it no more."""
        return self._attempts.pop((job.number, job.attempt), None) or Seen(job)

    async def clues(self, job: Job, seen: Seen, since: int | None) -> Clues:
        """Return what is known of its GPUs, as they are now too.

        Args:
            since: when it was started.
        """
        if not job.gpu_uuids:
            return Clues()
        # What the driver says of its end has often come, but not always.
        inventory = await self._gpus.look(max_age_s=0)
        found = [gpu for uuid in job.gpu_uuids if (gpu := inventory.find(uuid))]
        # Where the driver as a whole fails no GPU is lost, and programs that run go on.
        is_lost = inventory.problem is None
        return Clues(
            seen_at=seen.at,
            gpus=tuple(seen.gpus.get(gpu.uuid) or _seen_gpu(gpu) for gpu in found),
            foreign=tuple(seen.foreign.values()),
            xids=tuple(
                SeenXid(gpu.uuid, xid.at, xid.xid)
                for gpu in found
                for xid in self._gpus.xids(gpu)
                if since is not None and xid.at >= since and not _is_anothers(job, xid)
            ),
            lost=tuple(gpu.index for gpu in found if is_lost and gpu.state is GpuState.LOST),
        )

    # -- while it runs ----------------------------------------------------------------------------

    def _on_seen(self, gpu: Gpu) -> None:
        for seen in list(self._attempts.values()):
            if gpu.uuid in seen.job.gpu_uuids:
                self._note_use(seen, gpu)
                self._note_faults(seen, gpu)

    def _note_use(self, seen: Seen, gpu: Gpu) -> None:
        job = seen.job
        new, last = _seen_gpu(gpu), seen.gpus.get(gpu.uuid)
        # What is left when its processes are gone says less. One may never have come so far.
        if _is_on(job, new) or last is None or not _is_on(job, last):
            seen.gpus[gpu.uuid] = new
            seen.at = now_us()
        for process in _strangers(gpu):
            key = process.pid, process.since
            before = seen.foreign.get(key)
            if before is None and len(seen.foreign) >= _STRANGERS_MAX:
                continue
            if before is None or (before.memory or 0) <= (process.memory or 0):
                seen.foreign[key] = _seen_process(process)
            words = f"{_on(process, gpu)}, which the job has, and is none of the queue's"
            self._note_stranger(job, gpu, process, words)

    def _note_faults(self, seen: Seen, gpu: Gpu) -> None:
        job = seen.job
        since = job.assigned_at or 0
        for xid in self._gpus.xids(gpu):
            if xid.at >= since:
                self._note_xid(job, gpu, xid)
        for fault in gpu.faults:
            # XID errors are among them, for as long as they count.
            if not fault.startswith("XID ") and fault not in seen.faults.get(gpu.uuid, ()):
                self._note_fault(job, gpu, fault, f"GPU {gpu.index} has {fault}")
        if gpu.state is GpuState.LOST:
            self._note_fault(job, gpu, "lost", f"GPU {gpu.index} is lost: {gpu.reason}")

    def _note_xid(self, job: Job, gpu: Gpu, xid: Xid) -> None:
        meaning = meaning_of_xid(xid.xid)
        words = f"the driver reported XID {xid.xid} on GPU {gpu.index}"
        words += f": {meaning}" if meaning else ""
        if xid.xid in XIDS_THAT_NEED_A_RESET:
            words += "; it needs a reset, and takes no new job"
        facts = {"xid": xid.xid, "time": wire.rfc3339_exact(xid.at)}
        mark = f"{gpu.uuid} xid {xid.xid} {xid.at}"
        self._note(job, EventKind.GPU_FAULT, mark, words, _of(gpu) | facts)

    def _note_fault(self, job: Job, gpu: Gpu, fault: str, words: str) -> None:
        facts = _of(gpu) | {"fault": fault, "reason": gpu.reason}
        self._note(job, EventKind.GPU_FAULT, f"{gpu.uuid} {fault}", words, facts)

    # -- while it waits ---------------------------------------------------------------------------

    def kept_from(self, job: Job, gpus: Iterable[Gpu]) -> None:
        """Note that a job has to wait because strangers use these GPUs."""
        for gpu in gpus:
            for process in _strangers(gpu):
                words = f"waits because {_on(process, gpu)}, and is none of the queue's"
                self._note_stranger(job, gpu, process, words)

    # -- notes ------------------------------------------------------------------------------------

    def _note_stranger(self, job: Job, gpu: Gpu, process: Process, words: str) -> None:
        facts = _of(gpu) | {"process": wire.seen_process(_seen_process(process))}
        mark = f"{gpu.uuid} {process.pid} {process.since}"
        self._note(job, EventKind.FOREIGN, mark, words, facts)

    def _note(
        self, job: Job, kind: EventKind, mark: str, words: str, facts: dict[str, Any]
    ) -> None:
        key = job.number, job.attempt, mark
        if key in self._known:
            return
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known.add(key)
        self._spawn(self._write(Note(job.number, job.attempt, kind, now_us(), mark, words, facts)))

    async def _write(self, note: Note) -> None:
        try:
            events = await self._store.note(note)
        except AitbcError as error:
            # A full disk: said of what matters more.
            _log.warning("job number %d: not noted: %s (%s)", note.number, note.message, error)
            return
        self._feed.publish(events)

    async def _remember(self, seen: Seen) -> None:
        """Take what an earlier daemon has noted of strangers."""
        job = seen.job
        for event in await self._store.events(number=job.number):
            about = (event.facts or {}).get("process")
            if event.attempt != job.attempt or event.kind is not EventKind.FOREIGN or not about:
                continue
            since = about["since"] and wire.parse_time("since", about["since"])
            process = SeenProcess(
                about["pid"], about["user"], about["command"], about["memory"], since
            )
            seen.foreign.setdefault((process.pid, process.since), process)


def _is_anothers(job: Job, xid: Xid) -> bool:
    """Tell whether an error is likely to be of another program on the GPU than that of a job."""
    may_be = job.vram is not None and xid.xid not in XIDS_THAT_NEED_A_RESET
    return may_be and xid.at < now_us() - _SURVIVED_US


def _strangers(gpu: Gpu) -> list[Process]:
    return [one for one in gpu.processes if one.is_foreign]


def _on(process: Process, gpu: Gpu) -> str:
    held = f"holds {format_size(process.memory)} of" if process.memory else "is on"
    started = f"started {wire.rfc3339(process.since)}" if process.since else ""
    about = ", ".join(filter(None, (process.command, started)))
    what = f" ({about})" if about else ""
    return f"{whose(_seen_process(process))}{what} {held} GPU {gpu.index}"


def _is_on(job: Job, gpu: SeenGpu) -> bool:
    return any(one.job_id == job.job_id for one in gpu.processes)


def _of(gpu: Gpu) -> dict[str, Any]:
    return {"gpu": gpu.uuid, "index": gpu.index}


def _seen_process(process: Process) -> SeenProcess:
    return SeenProcess(
        process.pid, process.user, process.command, process.memory, process.since, process.job_id
    )


def _seen_gpu(gpu: Gpu) -> SeenGpu:
    return SeenGpu(
        gpu.uuid,
        gpu.index,
        gpu.name,
        gpu.memory_total,
        gpu.memory_used,
        tuple(_seen_process(one) for one in gpu.processes),
    )
