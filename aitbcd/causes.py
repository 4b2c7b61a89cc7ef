"""What stood behind the end of an attempt that did not complete: out of facts, its cause. Pure.

The programs of this field say in their last words why they end, so the tail of standard error is
read for them. What the kernel and the driver know is believed first: a program that was killed, or
whose GPU is gone, says anything.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from aitbcd.devices import XIDS_THAT_NEED_A_RESET, meaning_of_xid
from aitbcd.model import Cause, SeenGpu, SeenProcess, SeenXid, Snapshot, Value
from aitbcd.units import format_size

#: Bytes of standard error that are read for a cause. The traceback of what launches others
#: (torchrun) comes after that of the worker which failed, and is long.
TAIL_BYTES = 16 << 10
#: Of its last lines, what a snapshot keeps.
_LINES, _LINES_BYTES, _LINE_LENGTH = 20, 4096, 500
#: GPUs, processes and errors in a snapshot.
_GPUS, _PROCESSES, _XIDS = 16, 10, 16

#: XID errors that follow from the end of a program or from another one, or tell of what was
#: mended, of wear or of power: no cause ("ignore" in NVIDIA's "Xid Catalog").
_XIDS_WITHOUT_HARM = frozenset(
    {45, 63, 92, 93, 106, 107, 121, 154, 157, 160, 161, 162, 163, 164, 165}
)
#: The GPU has fallen off the bus.
_XID_LOST = 79

# Every repetition is bounded: a job writes what it likes, and all others wait meanwhile.
#: No memory left on a GPU, in the words of PyTorch, CUDA's driver and runtime, cuBLAS and cuDNN,
#: CuPy, RMM, TensorRT, llama.cpp, PaddlePaddle, vLLM and SGLang. "... from device:" is what
#: TensorFlow and JAX try first: they go on with less.
_CUDA_OOM = re.compile(
    rb"(?:CUDA|HIP) out of memory"
    rb"|CUDA error:? out of memory|[Cc]uda failure (?:2 )?'out of memory'"
    rb"|cuda runtime error \(2\)"
    rb"|(?<!from device: )CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    rb"|cudaMalloc\w{0,20}(?: retry)? failed: out of memory|Cuda Runtime \(out of memory\)"
    rb"|CU(?:BLAS|DNN|SOLVER|SPARSE|FFT)_STATUS_ALLOC_FAILED"
    rb"|cupy\.cuda\.memory\.OutOfMemoryError"
    rb"|out_of_memory: CUDA error"
    rb"|Out of memory error on GPU \d"
    rb"|Free memory on device \S{0,20} ?\([^)\n]{0,80}\) on startup is less than desired GPU memory"
    rb"|No available memory for the cache blocks"
    rb"|Not enough memory(?: to allocate KV cache)?\.\s{1,2}(?:Please try to|Possible fixes:)"
    rb" increase --mem-fraction-static"
)
#: The same in the words of JAX and TensorFlow, which say it of a processor's memory too.
_DEVICE_OOM = re.compile(
    rb"(?:RESOURCE_EXHAUSTED|Resource exhausted): (?:Out of memory while|Failed to allocate)"
    rb"|RESOURCE_EXHAUSTED: \S{1,80} ran out of memory"
    rb"|OOM when allocating tensor with shape(?![^\n]{0,300}/device:CPU:)"
)
#: Where PyTorch's words are those of an exception that nobody caught, its class is on their line.
_PYTORCHS = (b"CUDA out of memory", b"HIP out of memory")
_RAISED = re.compile(rb"\wError\b|\bException\b|what\(\):")
_TRACEBACK = b"Traceback (most recent call last):"
#: Somebody else has the GPU for himself.
_DEVICE_TAKEN = re.compile(rb"CUDA-capable device(?:s|\(s\)) (?:is/)?are busy or unavailable")
#: PyTorch does not say why a file could not be written; inotify says so of its own limit.
_DISK_FULL = re.compile(
    rb"No space left on device|Disk quota exceeded|\[Errno (?:28|122)\](?! inotify)"
    rb"|PytorchStreamWriter failed writing file [^\n:]{1,200}: file write failed"
)
#: A process of the job was ended by SIGKILL, and not the first one.
_CHILD_KILLED = re.compile(
    rb"is killed by signal: Killed|exited unexpectedly|terminated abruptly"
    rb"|died with <Signals.SIGKILL|exitcode\s{0,20}: -9\b"
    rb"|^(?:\S{1,200}: line \d{1,9}: {1,20}\d{1,9} )?Killed\b",
    re.M,
)
#: The kernel gave a process no memory, in the words of PyTorch, NumPy and Python.
_REFUSED = re.compile(
    rb"DefaultCPUAllocator: (?:can't allocate|not enough) memory"
    rb"|ArrayMemoryError: Unable to allocate|^MemoryError\b|\[Errno 12\]",
    re.M,
)
#: PyTorch: how much was asked for, and how much was free.
_ASKED = re.compile(
    rb"Tried to allocate ([\d.]{1,20}) (\w{1,10})\b.{0,200}?"
    rb"([\d.]{1,20}) (bytes|[KMGT]iB)(?: is)? free",
    re.S,
)
_UNITS = {b"bytes": 1, b"KiB": 1 << 10, b"MiB": 1 << 20, b"GiB": 1 << 30, b"TiB": 1 << 40}
#: Part of a GPU's memory from which on what a stranger holds is likely to have been what lacked.
_MUCH = 16


class Clues(Value, frozen=True):
    """What is known of an attempt that did not complete."""

    #: The end of its standard error.
    stderr: bytes = b""
    #: Its main process, or one that a shell waited for, was ended by SIGKILL by nobody here.
    was_killed: bool = False
    #: How often the kernel's OOM killer struck: in the attempt's cgroup; on the whole machine.
    oom_kills: int | None = None
    machine_oom_kills: int | None = None
    #: Its GPUs as they were seen last while it ran, and when.
    seen_at: int | None = None
    gpus: tuple[SeenGpu, ...] = ()
    #: Processes of others on its GPUs, and XID errors of these, while it ran.
    foreign: tuple[SeenProcess, ...] = ()
    xids: tuple[SeenXid, ...] = ()
    #: Indices of those of its GPUs that the driver cannot reach any more.
    lost: tuple[int, ...] = ()


class Finding(NamedTuple):
    cause: Cause
    #: A sentence's predicate, to stand behind how it ended.
    message: str
    #: The line of its standard error that tells it.
    evidence: str | None = None


def find(clues: Clues) -> tuple[Finding, Snapshot] | None:
    """Return the cause with what shows it; None where nothing tells."""
    finding = (
        _killed(clues)
        or _gpu_lost(clues)
        or _xid(clues, XIDS_THAT_NEED_A_RESET)
        or _out_of_gpu_memory(clues)
        or _killed_in_part(clues)
        or _refused(clues)
        or _xid(clues, {one.xid for one in clues.xids} - _XIDS_WITHOUT_HARM)
        or _disk_full(clues)
    )
    return (finding, _snapshot(clues, finding)) if finding else None


#: What to do about each, as a sentence.
ADVICE: Mapping[Cause, str] = {
    Cause.CUDA_OOM: (
        "use less memory of the GPU (a smaller batch, gradient checkpointing, a lower precision),"
        " or ask for GPUs with more (--min-vram)"
    ),
    Cause.INTERFERENCE: (
        "run it again, and ask whoever used the GPU past the queue to submit instead (aitbcctl gpus"
        " shows who uses one now)"
    ),
    Cause.HOST_OOM: (
        "use less of the machine's memory (fewer workers, smaller pieces), or ask for as much as it"
        " needs (--memory)"
    ),
    Cause.XID: (
        "where the error is one of the program (31: a bad address, 13, 43), debug it with"
        " CUDA_LAUNCH_BLOCKING=1; where it comes with every program, tell the administrator:"
        " aitbcctl gpus says what the GPU needs"
    ),
    Cause.GPU_LOST: (
        "run it again: it gets another GPU where there is one; aitbcctl gpus says what the lost one"
        " needs"
    ),
    Cause.DISK_FULL: "make room on the file system that it names (df -h), then run it again",
}


# --- one cause after the other --------------------------------------------------------------


def _killed(clues: Clues) -> Finding | None:
    kills = clues.machine_oom_kills if clues.oom_kills is None else clues.oom_kills
    return _host_oom(clues) if clues.was_killed and kills else None


def _killed_in_part(clues: Clues) -> Finding | None:
    """Tell whether it failed because one of its processes was killed: a worker, say."""
    if clues.oom_kills:
        return _host_oom(clues)
    may_be = clues.oom_kills is None and clues.machine_oom_kills
    found = _CHILD_KILLED.search(clues.stderr) if may_be else None
    return _host_oom(clues, _line_of(clues.stderr, found)) if found else None


def _host_oom(clues: Clues, evidence: str | None = None) -> Finding:
    where = "the job" if clues.oom_kills else "the machine"
    return Finding(
        Cause.HOST_OOM, f"{where} had no memory left, and the kernel ended a process", evidence
    )


def _refused(clues: Clues) -> Finding | None:
    found = _last(_REFUSED, clues.stderr)
    if found is None:
        return None
    message = "it asked for more memory than the machine had for it"
    return Finding(Cause.HOST_OOM, message, _line_of(clues.stderr, found))


def _gpu_lost(clues: Clues) -> Finding | None:
    indices = [gpu.index for gpu in clues.gpus if _has_fallen_off(clues, gpu)]
    indices = sorted({*indices, *clues.lost})
    if not indices:
        return None
    which = _gpus_named(indices)
    return Finding(Cause.GPU_LOST, f"the driver lost {which} while it ran")


def _has_fallen_off(clues: Clues, gpu: SeenGpu) -> bool:
    return any(one.uuid == gpu.uuid and one.xid == _XID_LOST for one in clues.xids)


def _xid(clues: Clues, wanted: Container[int]) -> Finding | None:
    found = next((one for one in clues.xids if one.xid in wanted), None)
    if found is None:
        return None
    indices = {gpu.uuid: gpu.index for gpu in clues.gpus}
    which = _gpus_named([indices[found.uuid]]) if found.uuid in indices else "its GPU"
    meaning = meaning_of_xid(found.xid)
    words = f"the driver reported XID {found.xid} on {which}"
    return Finding(Cause.XID, f"{words} ({meaning})" if meaning else words)


def _out_of_gpu_memory(clues: Clues) -> Finding | None:
    found = _fatal(_CUDA_OOM, clues.stderr)
    if found is None and clues.gpus:
        found = _fatal(_DEVICE_OOM, clues.stderr)
    if found is None:
        return _gpu_taken(clues)
    evidence = _line_of(clues.stderr, found)
    if stranger := _to_blame(clues, found):
        held = f"{format_size(stranger.memory)} of it" if stranger.memory else "a part of it"
        message = f"a GPU had no memory left, and {whose(stranger)} held {held}"
        return Finding(Cause.INTERFERENCE, message, evidence)
    return Finding(Cause.CUDA_OOM, "a GPU had no memory left", evidence)


def _gpu_taken(clues: Clues) -> Finding | None:
    found = _last(_DEVICE_TAKEN, clues.stderr)
    if found is None or not clues.foreign:
        return None
    message = f"its GPU was taken: {whose(clues.foreign[0])} was on it"
    return Finding(Cause.INTERFERENCE, message, _line_of(clues.stderr, found))


def _to_blame(clues: Clues, found: re.Match[bytes]) -> SeenProcess | None:
    """Return the stranger without whom the memory would have been enough, as far as can be told.

    Where the program says how much it lacked, that is compared with what the strangers held; where
    not, they have to have held a good part of a GPU. One that does not say how much it holds
    (another namespace's) is taken to hold much.
    """
    if not clues.foreign:
        return None
    largest = max(clues.foreign, key=lambda one: one.memory or 0)
    if any(one.memory is None for one in clues.foreign):
        return largest
    held = sum(one.memory or 0 for one in clues.foreign)
    asked = _ASKED.search(clues.stderr, found.start())
    if asked and asked.start() - found.end() < _LINE_LENGTH:
        lacked = _bytes(asked[1], asked[2]) - _bytes(asked[3], asked[4])
        return largest if held >= lacked else None
    least = max((gpu.memory_total for gpu in clues.gpus), default=0) // _MUCH
    return largest if held >= least else None


def _disk_full(clues: Clues) -> Finding | None:
    found = _last(_DISK_FULL, clues.stderr)
    if found is None:
        return None
    evidence = _line_of(clues.stderr, found)
    return Finding(Cause.DISK_FULL, "a file system had no room left", evidence)


def _bytes(number: bytes, unit: bytes) -> int:
    try:
        return int(float(number) * _UNITS.get(unit, 1))
    except ValueError:
        # "1.2.3": no words of PyTorch's.
        return 0


# --- words ----------------------------------------------------------------------------------


def whose(process: SeenProcess) -> str:
    """Return whose process it is and which. Not what it runs: messages go with the results."""
    user = f"{process.user}'s" if process.user else "somebody's"
    return f"{user} process {process.pid}"


def _gpus_named(indices: Iterable[int]) -> str:
    words = [str(index) for index in indices]
    if len(words) == 1:
        return f"GPU {words[0]}"
    return f"GPUs {', '.join(words[:-1])} and {words[-1]}"


def _last(pattern: re.Pattern[bytes], text: bytes) -> re.Match[bytes] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found


def _fatal(pattern: re.Pattern[bytes], text: bytes) -> re.Match[bytes] | None:
    """Return the last match, but for those that were caught and after which it went on.

    Then another error's traceback follows, and theirs is not there.
    """
    ends_with, found = text.rfind(_TRACEBACK), None
    for match in pattern.finditer(text):
        nearest = max(0, match.start() - _LINE_LENGTH)
        begin = max(nearest, text.rfind(b"\n", nearest, match.start()) + 1)
        is_raised = (
            match.start() > ends_with
            or match[0] not in _PYTORCHS
            or _RAISED.search(text, begin, match.start())
        )
        found = match if is_raised else found
    return found


def _line_of(text: bytes, found: re.Match[bytes]) -> str:
    start = max(text.rfind(b"\n", 0, found.start()), text.rfind(b"\r", 0, found.start())) + 1
    end = text.find(b"\n", found.end())
    return _shown(text[start : end if end >= 0 else len(text)])


def last_lines(text: bytes) -> tuple[str, ...]:
    """Return the last lines of a log, as a terminal would have shown them; few and short."""
    kept: list[str] = []
    room = _LINES_BYTES
    for line in reversed(text[-2 * _LINES_BYTES :].rstrip().split(b"\n")):
        shown = _shown(line)
        room -= len(shown.encode("utf-8", "replace")) + 1
        if len(kept) == _LINES or room < 0:
            break
        kept.append(shown)
    return tuple(reversed(kept))


def _shown(line: bytes) -> str:
    """Return a line as text; of a progress bar, which is drawn over and over, the last state."""
    text = line.rstrip().rpartition(b"\r")[2].decode("utf-8", "replace")
    return text if len(text) <= _LINE_LENGTH else f"{text[: _LINE_LENGTH - 1]}\u2026"


# --- the snapshot ---------------------------------------------------------------------------


def _snapshot(clues: Clues, finding: Finding) -> Snapshot:
    kills = clues.machine_oom_kills if clues.oom_kills is None else clues.oom_kills
    return Snapshot(
        seen_at=clues.seen_at,
        gpus=tuple(_few_processes(gpu) for gpu in clues.gpus[:_GPUS]),
        foreign=_largest(clues.foreign),
        xids=clues.xids[-_XIDS:],
        oom_kills=kills,
        evidence=finding.evidence,
        stderr=last_lines(clues.stderr),
    )


def _few_processes(gpu: SeenGpu) -> SeenGpu:
    return replace(gpu, processes=_largest(gpu.processes))


def _largest(processes: Iterable[SeenProcess]) -> tuple[SeenProcess, ...]:
    return tuple(sorted(processes, key=lambda one: -(one.memory or 0))[:_PROCESSES])
