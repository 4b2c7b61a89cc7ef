"""What the probe tells the daemon: plain facts of the driver and of /proc, no judgement."""

from __future__ import annotations

from msgspec import Struct, field

from aitbcd.devices import MigInstance


class ProcessFacts(Struct, frozen=True):
    pid: int
    #: It has a compute context (also through MPS); false: it only draws.
    is_compute: bool
    memory: int | None
    #: None when it is of another PID namespace, or gone.
    uid: int | None = None
    command: str | None = None
    #: Microseconds since the epoch.
    since: int | None = None
    #: What its environment says in AITBC_JOB_ID, where it can be read.
    claim: str | None = None
    #: What it descends from, its parent first.
    lineage: tuple[int, ...] = ()
    #: Its cgroups, as proc_pid_cgroup(5) has them.
    cgroups: tuple[str, ...] = ()


class DeviceFacts(Struct, frozen=True):
    index: int
    uuid: str
    name: str
    bus_id: str | None = None
    memory_total: int = 0
    memory_used: int = 0
    compute_capability: str | None = None
    power_limit: float | None = None
    power: float | None = None
    utilization: int | None = None
    temperature: int | None = None
    energy: float | None = None
    sm_clock: int | None = None
    memory_clock: int | None = None
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    mig: MigInstance | None = None
    #: MIG mode is on and this is the GPU itself, which no program can use as a whole.
    is_divided: bool = False
    uncorrected_errors: int = 0
    is_remap_pending: bool = False
    has_remap_failed: bool = False
    #: nvmlReturn_t of the call that failed, where the device cannot be used.
    failure: int | None = None
    processes: tuple[ProcessFacts, ...] = ()


class Unreachable(Struct, frozen=True):
    """A GPU that NVML counts and does not open."""

    index: int
    failure: int


class Report(Struct, frozen=True):
    """The answer to one question."""

    driver_version: str
    cuda_version: str
    devices: tuple[DeviceFacts, ...]
    unreachable: tuple[Unreachable, ...] = ()


class Fault(Struct, frozen=True):
    """An XID error: the driver's word for something that went wrong on a GPU."""

    uuid: str
    xid: int


class Failure(Struct, frozen=True):
    """NVML cannot be used; the probe ends after it."""

    #: nvmlReturn_t.
    code: int
    #: NVML's own words.
    text: str


class Message(Struct, frozen=True):
    """A line of the probe: one of these."""

    report: Report | None = None
    #: The GPUs that were asked for, with what changes read anew and all else as last reported.
    sample: tuple[DeviceFacts, ...] | None = None
    fault: Fault | None = None
    failure: Failure | None = None
    #: Look: something happened that is no fault of one known GPU.
    is_disturbed: bool = False
    #: The library on disk is another one than the one that is loaded; the probe ends.
    is_outdated: bool = False
