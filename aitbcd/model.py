"""The values everything speaks of: jobs, what they ask for, how they ended.

Frozen, no I/O. Times are integer microseconds since the epoch, UTC; sizes are bytes; what comes
from a user's shell (argv, paths, environment) is bytes, because it need not be UTF-8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple

#: Letters of a job id: lowercase, without i, l, o and u (Crockford's base 32).
ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_LENGTH = 8


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


@dataclass(frozen=True, slots=True)
class JobSpec:
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


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended: the facts of its supervisor and what was made of them."""

    finished_at: int
    reason: Reason | None = None
    cause: str | None = None
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


@dataclass(frozen=True, slots=True)
class Job:
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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job: where, when, how it ended."""

    attempt: int
    boot_id: str
    assigned_at: int
    started_at: int | None = None
    #: Opaque word of whoever runs it (the main process).
    handle: str | None = None
    gpu_uuids: tuple[str, ...] = ()
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a job's status. ``seq`` ascends by one over the whole store."""

    seq: int
    number: int
    job_id: str
    uid: int
    at: int
    status: JobState
    attempt: int
    reason: Reason | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Key:
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


@dataclass(frozen=True, slots=True)
class Share:
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


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has to share; its GPUs come and go."""

    cpus: int
    #: Bytes of memory.
    memory: int
    #: ``miner_`` and eight characters that name this machine.
    miner_id: str = ""
    boot_id: str = ""
