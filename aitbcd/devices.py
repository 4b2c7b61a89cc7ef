"""The GPUs of this machine as values: what each is, does, and is worth to a planner. Pure.

A ``Gpu`` is a snapshot; ``uuid`` names the device, ``index`` only where it is at present. Times are
integer microseconds since the epoch; sizes are bytes. None stands for what the driver does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from msgspec import Struct, field


class GpuState(str, Enum):
    """What a GPU is good for now; only a free one takes a job for whole GPUs."""

    FREE = "free"
    #: Jobs of ours use it.
    BUSY = "busy"
    #: Somebody uses it past the queue.
    FOREIGN = "foreign"
    #: Takes no new job: an administrator's wish, or a fault that needs a reset.
    DRAINED = "drained"
    #: A job's memory did not come back.
    QUARANTINED = "quarantined"
    #: The driver cannot reach it.
    LOST = "lost"

    @property
    def is_usable(self) -> bool:
        """Tell whether jobs can have it, now or when those that do have ended."""
        return self in (GpuState.FREE, GpuState.BUSY)


#: How two GPUs are connected, the nearest first.
LINKS = ("nvlink", "board", "switch", "switches", "host-bridge", "node", "system")


class Near(NamedTuple):
    """What is near to some GPUs. None of a kind: all of it is as good."""

    cores: tuple[int, ...] = ()
    #: NUMA nodes, whose memory it is.
    nodes: tuple[int, ...] = ()


ANYWHERE = Near()


class Process(Struct, frozen=True):
    """A process that has memory or a context on a GPU."""

    pid: int
    user: str | None
    #: Its program's name and arguments, shortened.
    command: str | None
    memory: int | None
    #: When it was started.
    since: int | None
    #: The job of ours that it belongs to.
    job_id: str | None
    #: Uses the GPU past the queue; a display server's few MiB do not count.
    is_foreign: bool

    @property
    def is_gone(self) -> bool:
        """Tell whether it is dead, and listed all the same, or out of sight."""
        return self.user is None

    @property
    def is_bystander(self) -> bool:
        """Tell whether it only draws, or serves others that are listed themselves (MPS)."""
        return not self.is_foreign and self.job_id is None


class MigInstance(Struct, frozen=True):
    """What makes a device a part of a GPU."""

    #: UUID of the GPU that it is a part of.
    parent: str
    gpu_instance: int
    compute_instance: int


class Gpu(Struct, frozen=True):
    """One GPU, or one MIG device."""

    #: As NVML counts now; of a MIG device its GPU's.
    index: int
    uuid: str
    name: str
    #: ``00000000:17:00.0``
    bus_id: str | None
    memory_total: int
    memory_used: int
    state: GpuState
    #: Why it is in this state, as a sentence; None for free, and for busy without a stranger.
    reason: str | None = None
    #: ``9.0``
    compute_capability: str | None = None
    #: Watts.
    power_limit: float | None = None
    power: float | None = None
    #: Percent of the last sample period in which a kernel ran.
    utilization: int | None = None
    #: Degrees Celsius.
    temperature: int | None = None
    #: Joules since the driver was loaded.
    energy: float | None = None
    #: MHz.
    sm_clock: int | None = None
    memory_clock: int | None = None
    #: The NUMA node that it is near to, and the cores there.
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    #: Other GPUs by UUID, with one of ``LINKS``.
    links: Mapping[str, str] = field(default_factory=dict)
    mig: MigInstance | None = None
    #: What needs a reset or a look of an administrator, as sentences.
    faults: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()

    @property
    def label(self) -> str:
        """Return its number as lists show it, of a MIG device with its own: ``0:1``."""
        return str(self.index) if self.mig is None else f"{self.index}:{self.mig.gpu_instance}"

    @property
    def has_stranger(self) -> bool:
        """Tell whether somebody uses it past the queue, or did until a moment ago."""
        return self.state is GpuState.FOREIGN or (
            self.state is GpuState.BUSY and self.reason is not None
        )


def unaccounted(gpu: Gpu, bystander_max: int) -> int | None:
    """Return how much of a GPU's memory is in use by no process that is listed and lives.

    Args:
        bystander_max: the most that a bystander can have for itself. What a server of MPS has
            beyond is of programs, perhaps of dead ones.

    Returns:
        Bytes; None where the driver does not say what each process has.
    """
    used = gpu.memory_used
    for process in gpu.processes:
        if process.is_bystander:
            used -= min(process.memory or 0, bystander_max)
        elif process.is_gone:
            continue
        elif process.memory is None:
            return None
        else:
            used -= process.memory
    return max(0, used)


class Inventory(Struct, frozen=True):
    """All GPUs at one moment."""

    #: When this was seen.
    at: int
    #: What stands in the way of using GPUs, as a sentence with what to do; None when nothing does.
    problem: str | None
    driver_version: str | None = None
    #: The newest CUDA version that the driver can run, as ``12.8``.
    cuda_version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    #: There may be more, of which this daemon has not seen anything yet.
    is_partial: bool = False

    def find(self, uuid: str) -> Gpu | None:
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)


#: XID errors after which a GPU needs a reset or more (NVIDIA's "Xid Catalog"). What a program alone
#: can cause (13, 31, 43, 45, 94, ...) is not among them.
XIDS_THAT_NEED_A_RESET = {
    46: "it stopped processing",
    48: "an uncorrectable memory error",
    61: "its microcontroller stopped at a breakpoint",
    62: "its microcontroller halted",
    64: "a bad memory row could not be recorded for remapping",
    74: "an NVLink failed",
    79: "it has fallen off the bus",
    95: "an uncontained memory error",
    109: "it could not switch between programs",
    110: "a security fault",
    119: "its system processor (GSP) does not answer",
    120: "its system processor (GSP) failed",
    136: "an NVLink could not be trained",
    140: "an unrecovered memory error",
    143: "it could not be initialized",
    156: "a part of it failed and is to be left out",
    158: "a fatal timeout",
}
#: What a program alone can cause.
XIDS_OF_PROGRAMS = {
    13: "the program did what the GPU cannot do",
    31: "the program used a bad address",
    43: "the program was stopped after an error of its own",
    45: "what the program still had there was removed",
    94: "an uncorrectable memory error that hit this program alone",
}


def meaning_of_xid(xid: int) -> str | None:
    return XIDS_THAT_NEED_A_RESET.get(xid) or XIDS_OF_PROGRAMS.get(xid)
