"""The values everything speaks of: jobs, what they ask for, how they ended.

Frozen, no I/O. Times are integer microseconds since the epoch, UTC; sizes are bytes; what comes
from a user's shell (argv, paths, environment) is bytes, because it need not be UTF-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from msgspec import Struct

#: Letters of a job id: lowercase, without i, l, o and u (Crockford's base 32).
ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_LENGTH = 8
#: Of a GPU, all of it: shares are millionths.
WHOLE = 1_000_000


class Value(Struct, frozen=True, gc=False):
    """A value of several fields. The collector passes it by: nothing in one leads back to it."""


class JobState(str, Enum):
    """Where a job is. ``lifecycle.TRANSITIONS`` says what may follow what."""

    #: Waits for slots. The scheduler moves it; a daemon restart leaves it where it is.
    PENDING = "pending"
    #: Chosen to run, its launch committed. A restart finds its run folder, or launches it.
    ASSIGNED = "assigned"
    #: Its program was started. Its supervisor's report moves it; a restart adopts it.
    RUNNING = "running"
    #: To be ended, its processes may still live. A restart asks its supervisor again.
    CANCELING = "canceling"
    #: Final: exit status 0.
    COMPLETED = "completed"
    #: Final: see ``Reason``.
    FAILED = "failed"
    #: Final: ended at the wish of its owner.
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return self in FINAL

    @property
    def is_active(self) -> bool:
        """True while an attempt may exist on the machine."""
        return self in ACTIVE


FINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELED})
ACTIVE = frozenset({JobState.ASSIGNED, JobState.RUNNING, JobState.CANCELING})


class Reason(str, Enum):
    """Why a job ended as it did; every final state but completed has one."""

    EXIT = "exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    CANCELED = "canceled"
    CANNOT_START = "cannot_start"
    LOST = "lost"
    STORAGE = "storage"
    DEPENDENCY = "dependency"
    CANCELLATION_FAILED = "cancellation_failed"


class Cause(str, Enum):
    """What stood behind the end of an attempt that did not complete, where that is known."""

    #: A GPU had no memory left.
    CUDA_OOM = "cuda_oom"
    #: ... because of a process that is none of the queue's.
    INTERFERENCE = "interference"
    #: The machine, or the job's cgroup, had no memory left: a process was killed, or got none.
    HOST_OOM = "host_oom"
    #: The driver reported an error of the GPU or of the program on it.
    XID = "xid"
    #: The driver could reach a GPU no more.
    GPU_LOST = "gpu_lost"
    #: A file system had no room left.
    DISK_FULL = "disk_full"


class ResultsState(str, Enum):
    KEPT = "kept"
    EXPIRED = "expired"
    #: Never had an attempt, so there is no package.
    NONE = "none"


class Priority(IntEnum):
    LOW = -1
    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, slots=True)
class Owner:
    """A user of this machine, as the kernel and the user database name them."""

    uid: int
    name: str
    #: He may see, cancel and delete everybody's jobs: root, or of the administrators' group.
    is_admin: bool = field(default=False, compare=False)


class JobSpec(Value, frozen=True):
    """What a user asked for; never changed after the submit."""

    #: Program and arguments. A shell line is ``(b"/bin/sh", b"-c", line)`` with ``is_shell``.
    argv: tuple[bytes, ...]
    is_shell: bool = False
    name: str | None = None
    #: Absolute; None is the owner's home.
    cwd: bytes | None = None
    #: The whole base environment as ``KEY=VALUE`` entries; None is the owner's plain base.
    environment: tuple[bytes, ...] | None = None
    #: Additions to either, ``KEY=VALUE``.
    env: tuple[bytes, ...] = ()
    cpus: int = 1
    #: Bytes; None claims nothing.
    memory: int | None = None
    gpus: int = 0
    #: Any part of a model's name.
    gpu_type: str | None = None
    #: Bytes that each GPU has to have.
    min_vram: int | None = None
    #: UUIDs of the GPUs that it has to be, as many as ``gpus``.
    gpu: tuple[str, ...] = ()
    #: Bytes of one GPU that other jobs may share; None is all of it.
    vram: int | None = None
    #: Seconds of running time; None is no limit.
    timeout_s: float | None = None
    priority: Priority = Priority.NORMAL
    #: Globs relative to ``cwd``, collected when the job ends.
    artifacts: tuple[bytes, ...] = ()
    #: How often a failed attempt is repeated.
    retries: int = 0
    #: None is 0o022.
    umask: int | None = None
    #: Absolute path of the file that becomes standard input; None is /dev/null.
    stdin: bytes | None = None


class SeenProcess(Value, frozen=True):
    """A process as it was seen on a GPU."""

    pid: int
    user: str | None
    command: str | None
    memory: int | None
    #: When it was started.
    since: int | None
    #: None: it is none of the queue's.
    job_id: str | None = None


class SeenGpu(Value, frozen=True):
    """A GPU of an attempt, as a look saw it."""

    uuid: str
    index: int
    name: str
    memory_total: int
    memory_used: int
    #: Those with the most memory first.
    processes: tuple[SeenProcess, ...] = ()


class SeenXid(Value, frozen=True):
    """An XID error of a GPU."""

    uuid: str
    at: int
    xid: int


class Snapshot(Value, frozen=True):
    """What shows the cause of an attempt's end. Its owner's: it quotes what the job wrote."""

    #: When its GPUs were seen last while it ran; None: they were not.
    seen_at: int | None = None
    gpus: tuple[SeenGpu, ...] = ()
    #: Processes of others that were on its GPUs at any time while it ran, at their largest.
    foreign: tuple[SeenProcess, ...] = ()
    xids: tuple[SeenXid, ...] = ()
    #: How often the OOM killer struck: in its cgroup, or else on the machine; None: not known.
    oom_kills: int | None = None
    #: The line of its standard error that tells the cause.
    evidence: str | None = None
    #: The last lines of its standard error; of its output where it wrote nothing there.
    stderr: tuple[str, ...] = ()


class GpuUse(Value, frozen=True):
    """What an attempt made of its GPUs, over all of them, as far as that was sampled."""

    #: Seconds from a row of ``logs/gpu.csv`` to the next of the same GPU, and how many there are.
    interval_s: float
    rows: int
    #: The time that they stand for: seconds, times the GPUs.
    sampled_s: float
    #: Percent of that time in which the GPUs computed; the most of a sample.
    utilization_mean: float | None = None
    utilization_peak: int | None = None
    #: Bytes, the most on one GPU: in use there, and of the job's own processes.
    memory_peak: int | None = None
    job_memory_peak: int | None = None
    #: Of a share of a GPU its part.
    energy_j: float | None = None
    #: Seconds, times GPUs, in which they did next to nothing.
    idle_s: float | None = None


class Ending(Value, frozen=True):
    """How an attempt ended: the facts of its supervisor and what was made of them."""

    finished_at: int
    reason: Reason | None = None
    cause: Cause | None = None
    #: A sentence for people.
    message: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    #: Processor time of the whole tree, microseconds; the peak resident memory of its largest
    #: process, bytes, 0 where it is too little to be told from that of its supervisor.
    user_us: int = 0
    system_us: int = 0
    max_rss: int = 0
    results: ResultsState = ResultsState.NONE
    #: sha256 of output.sha256, hexadecimal.
    digest: str | None = None
    #: Bytes and number of files in the package.
    result_bytes: int = 0
    result_files: int = 0
    progress: int | None = None
    #: What this attempt costs, millionths of the currency.
    charge_micro: int = 0
    #: What shows the cause; left out of lists of jobs.
    snapshot: Snapshot | None = None
    #: There where an attempt is recorded, or looked at by itself.
    gpu_use: GpuUse | None = None
    #: The most memory that all of it had at one time, files that the kernel cached for it included,
    #: bytes; None where no cgroup counted it. There like ``gpu_use``.
    memory_peak: int | None = None


class Job(Value, frozen=True):
    """A job as its status shows it. ``ending`` is there in final states only."""

    number: int
    job_id: str
    owner: Owner
    status: JobState
    name: str | None
    cpus: int
    memory: int | None
    gpus: int
    timeout_s: float | None
    priority: Priority
    retries: int
    #: The attempt in progress or the last one; 0 before the first.
    attempt: int
    created_at: int
    assigned_at: int | None = None
    started_at: int | None = None
    ending: Ending | None = None
    #: The plan of the API key that it was submitted with; None where that says nothing of one.
    plan: str | None = None
    #: The id of the job that this one is a retry of.
    retry_of: str | None = None
    #: What all its attempts cost, millionths of the currency.
    charge_micro: int = 0
    #: When its results go; there in final states only.
    expires_at: int | None = None
    #: What it asks of GPUs, as in ``JobSpec``.
    gpu_type: str | None = None
    min_vram: int | None = None
    gpu: tuple[str, ...] = ()
    vram: int | None = None
    #: What the attempt in progress, or the one that ended it, was given.
    gpu_uuids: tuple[str, ...] = ()


class Lane(NamedTuple):
    """The jobs of the queue that run in the order of their submits: of one user, of one priority.

    Those for GPUs are apart from the others, which can run while all GPUs are taken.
    """

    priority: int
    uid: int
    has_gpus: bool


class Front(NamedTuple):
    """The next jobs of a lane."""

    #: The first ones that ask for the same, in the order of their submits.
    jobs: Sequence[Job]
    #: Behind what is asked for here more was not read; None: that is all.
    next: str | None = None


class Attempt(Value, frozen=True):
    """One run of a job: where, when, how it ended."""

    attempt: int
    boot_id: str
    assigned_at: int
    started_at: int | None = None
    #: Opaque word of whoever runs it (the main process).
    handle: str | None = None
    gpu_uuids: tuple[str, ...] = ()
    ending: Ending | None = None
    #: So far, while it runs.
    gpu_use: GpuUse | None = None


class EventKind(str, Enum):
    #: A change of its status.
    STATUS = "status"
    #: A process that is none of the queue's is on a GPU that the job has, or waits for.
    FOREIGN = "foreign"
    #: Something is wrong with a GPU that it has.
    GPU_FAULT = "gpu_fault"


class Event(Value, frozen=True):
    """One change of a job's status, or what happened meanwhile.

    ``seq`` ascends by one over the whole store.
    """

    seq: int
    number: int
    job_id: str
    uid: int
    at: int
    status: JobState
    attempt: int
    reason: Reason | None = None
    message: str | None = None
    cause: Cause | None = None
    kind: EventKind = EventKind.STATUS
    #: What was seen, as JSON has it; of what is no change of a status.
    facts: dict[str, Any] | None = None


class Key(Value, frozen=True):
    """An API key; the secret itself is known to nobody here."""

    #: ``key_`` and eight characters.
    id: str
    owner: Owner
    name: str
    plan: str | None
    is_read_only: bool
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None


class Share(Value, frozen=True):
    """A permission to read the results of one job: a link, or for another user."""

    #: ``share_`` and eight characters.
    id: str
    number: int
    job_id: str
    owner: Owner
    #: Name of the user it is for; None: whoever holds the link.
    user: str | None
    created_at: int
    expires_at: int
    uses: int = 0
    last_used_at: int | None = None
    revoked_at: int | None = None


class Machine(Value, frozen=True):
    """What this machine has to share; its GPUs come and go."""

    cpus: int
    #: Bytes of memory.
    memory: int
    #: ``miner_`` and eight characters that name this machine.
    miner_id: str = ""
    boot_id: str = ""
