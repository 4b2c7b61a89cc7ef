"""Why an attempt failed, out of what programs say, and what the kernel and the driver know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aitbcd import causes
from aitbcd.causes import ADVICE, Clues, last_lines
from aitbcd.model import Cause, SeenGpu, SeenProcess, SeenXid

GIB = 1 << 30
OWN = SeenProcess(7, "ann", "python", GIB, 0, "job_a")
GPU = SeenGpu("GPU-a", 3, "NVIDIA H100", 80 * GIB, 79 * GIB, (OWN,))
BOB = SeenProcess(99, "bob", "python -m notebook --token=secret", 20 * GIB, 0)

TORCH = (
    b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total"
    b" capacity of 23.65 GiB of which 1.66 GiB is free. Including non-PyTorch memory, this process"
    b" has 20.81 GiB memory in use."
)
OLD_TORCH = (
    b"RuntimeError: CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity;"
    b" 781.59 MiB already allocated; 3.03 GiB free; 1.24 GiB reserved in total by PyTorch)"
)
#: The last words of programs, as they are in the trackers of their projects.
WORDS = {
    "torch": TORCH,
    "torch 1": OLD_TORCH,
    "torch 2.1": b"torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB. GPU"
    b" 0 has a total capacty of 23.65 GiB of which 1.66 GiB is free.",
    "torch at its start": b"RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be"
    b" asynchronously reported at some other API call",
    "torch on AMD": b"torch.OutOfMemoryError: HIP out of memory. Tried to allocate 3.00 GiB.",
    "cublas": b"RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"
    b" `cublasCreate(handle)`",
    "numba": b"numba.cuda.cudadrv.driver.CudaAPIError: [2] Call to cuMemAlloc results in"
    b" CUDA_ERROR_OUT_OF_MEMORY",
    "cupy": b"cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 8,589,934,592 bytes"
    b" (allocated so far: 0 bytes).",
    "cupy's runtime": b"cupy_backends.cuda.api.runtime.CUDARuntimeError: cudaErrorMemoryAllocation:"
    b" out of memory",
    "rmm": b"MemoryError: std::bad_alloc: out_of_memory: CUDA error at: /rmm/cuda_memory_resource",
    "llama.cpp": b"ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0:"
    b" cudaMalloc failed: out of memory",
    "nccl": b"ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2"
    b" 'out of memory'",
    "paddle": b"ResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate 2.0GB",
    "jax": b"jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while"
    b" trying to allocate 4770354232 bytes.\nBufferAssignment OOM Debugging.",
    "jax's request": b"RESOURCE_EXHAUSTED: Failed to allocate request for 176.00MiB (184549376B) on"
    b" device ordinal 0",
    "tensorflow": b"ResourceExhaustedError: OOM when allocating tensor with shape[32,1024,64,64]"
    b" and type float on /job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc",
    "vllm": b"ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired"
    b" GPU memory utilization (0.95, 45.01 GiB). Decrease GPU memory utilization",
    "vllm 0.11": b"ValueError: Free memory on device cuda:0 (2.6/121.63 GiB) on startup is less"
    b" than desired GPU memory utilization (0.08, 9.73 GiB)",
    "vllm's cache": b"ValueError: No available memory for the cache blocks. Try increasing"
    b" `gpu_memory_utilization` when initializing the engine.",
    "sglang": b"RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."
    b" Current value: self.server_args.mem_fraction_static=0.2",
    "sglang's cuda graph": b"Exception: Capture cuda graph failed: CUDA out of memory. Tried to"
    b" allocate 350.00 MiB.",
    "xgboost": b"xgboost.core.XGBoostError: [13:55:26] device_helpers.cuh:414: Memory allocation"
    b" error on worker 0: std::bad_alloc: cudaErrorMemoryAllocation: out of memory",
    "jax, which asks the driver": b"gpu_async_1 cuMemAllocAsync failed to allocate 1225195446464"
    b" bytes: RESOURCE_EXHAUSTED: : CUDA_ERROR_OUT_OF_MEMORY: out of memory",
}  # fmt: skip
#: How what starts workers ends when one of them has failed.
LAUNCHER = (
    b"E1127 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 1)\n"
    b"Traceback (most recent call last):\n"
    b'  File "/usr/bin/torchrun", line 8, in <module>\n'
    b"torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
)
KEY_ERROR = (
    b"Traceback (most recent call last):\n"
    b'  File "train.py", line 7, in <module>\n'
    b"KeyError: 'epoch'\n"
)


def found(**clues: Any) -> tuple[Cause | None, str]:
    result = causes.find(replace(Clues(gpus=(GPU,)), **clues))
    return (result[0].cause, result[0].message) if result else (None, "")


@pytest.mark.parametrize("who", WORDS)
def test_a_gpu_without_memory_is_recognized_in_the_words_of(who: str) -> None:
    stderr = b"Traceback (most recent call last):\n" + WORDS[who] + b"\nE0101 ChildFailedError\n"
    assert found(stderr=stderr)[0] is Cause.CUDA_OOM
    evidence = causes.find(Clues(stderr, gpus=(GPU,)))
    assert evidence is not None
    assert (evidence[0].evidence or "")[:40].encode() in stderr


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"KeyError: 'x'",
        b"W bfc_allocator.cc:310] Allocator (GPU_0_bfc) ran out of memory trying to allocate"
        b" 3.37GiB with freed_by_count=0. The caller indicates that this is not a failure",
        # TensorFlow and JAX ask for less then.
        b"I cuda_driver.cc:801] failed to allocate 7.81G (8387559424 bytes) from device:"
        b" CUDA_ERROR_OUT_OF_MEMORY: out of memory\nValueError: no such file: data.tfrecord",
        b"ResourceExhaustedError: OOM when allocating tensor with shape[1,640,494,3] and type float"
        b" on /job:localhost/replica:0/task:0/device:CPU:0 by allocator cpu",
        b"XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.",
        b"OSError: [Errno 28] inotify watch limit reached",
        b"google.api_core.exceptions.ResourceExhausted: 429 RESOURCE_EXHAUSTED: Quota exceeded",
        b"\xff\x00\xfe",
    ],
)
def test_other_words_are_no_cause(words: bytes) -> None:
    assert found(stderr=words) == (None, "")


@pytest.mark.parametrize(
    "caught",
    [
        b"WARNING: CUDA out of memory. Tried to allocate 3.00 GiB. Skipping this batch.\n",
        b"CUDA out of memory. Tried to allocate 3.00 GiB.\n",
        b"Error: CUDA out of memory, trying a smaller batch\n",
    ],
)
def test_an_error_that_was_caught_is_no_cause_of_another_one(caught: bytes) -> None:
    assert found(stderr=caught + b"epoch 3\n" + KEY_ERROR) == (None, "")
    # It gave up because of it.
    assert found(stderr=caught)[0] is Cause.CUDA_OOM
    assert found(stderr=KEY_ERROR + caught)[0] is Cause.CUDA_OOM
    both = caught + b"Traceback (most recent call last):\n" + TORCH
    assert found(stderr=both + b"\n" + LAUNCHER)[0] is Cause.CUDA_OOM


@pytest.mark.parametrize(
    "words",
    [
        b"[rank0]: " + TORCH,
        b"(EngineCore_DP0 pid=1) ERROR 04-09 05:39:54 [core.py:390] " + TORCH,
        b"terminate called after throwing an instance of 'c10::OutOfMemoryError'\n"
        b"  what():  CUDA out of memory. Tried to allocate 3.00 GiB.",
        b"enqueue.cc:1085 NCCL WARN Cuda failure 'out of memory'",
        b"cudaMalloc failed: out of memory",
    ],
)
def test_what_ended_a_worker_is_behind_the_end_of_its_launcher(words: bytes) -> None:
    assert found(stderr=words + b"\n" + LAUNCHER)[0] is Cause.CUDA_OOM


def test_what_is_said_of_a_processors_memory_too_counts_only_with_a_gpu() -> None:
    assert found(stderr=WORDS["jax"], gpus=())[0] is None
    assert found(stderr=TORCH, gpus=())[0] is Cause.CUDA_OOM


# Whose fault


@pytest.mark.parametrize(
    ("held", "stderr", "cause"),
    [
        # It lacked 1.34 GiB.
        (2 * GIB, TORCH, Cause.INTERFERENCE),
        (1 * GIB, TORCH, Cause.CUDA_OOM),
        # More was free than was asked for: it lay in pieces.
        (1 * GIB, OLD_TORCH, Cause.INTERFERENCE),
        # Nobody says how much was lacking: a sixteenth of the GPU is much.
        (5 * GIB, WORDS["jax"], Cause.INTERFERENCE),
        (4 * GIB, WORDS["jax"], Cause.CUDA_OOM),
        (None, WORDS["jax"], Cause.INTERFERENCE),
    ],
)
def test_a_stranger_is_to_blame_if_his_memory_would_have_been_enough(
    held: int | None, stderr: bytes, cause: Cause
) -> None:
    assert found(stderr=stderr, foreign=(replace(BOB, memory=held),))[0] is cause


def test_two_strangers_are_to_blame_together_and_the_larger_is_named() -> None:
    two = (replace(BOB, memory=GIB), replace(BOB, pid=100, user="eve", memory=GIB // 2))
    cause, message = found(stderr=TORCH, foreign=two)
    assert cause is Cause.INTERFERENCE
    assert "bob's process 99 held 1 GiB" in message
    # Whoever may read the results reads this: not what somebody typed.
    assert "secret" not in message


def test_a_gpu_that_a_stranger_has_for_himself_is_interference() -> None:
    words = b"RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"
    assert found(stderr=words, foreign=(BOB,))[0] is Cause.INTERFERENCE
    assert found(stderr=words)[0] is None


# What the kernel and the driver know


@pytest.mark.parametrize(
    ("clues", "cause"),
    [
        ({"was_killed": True}, None),
        ({"was_killed": True, "oom_kills": 1}, Cause.HOST_OOM),
        ({"was_killed": True, "machine_oom_kills": 2}, Cause.HOST_OOM),
        # Somebody else's process: the job's own cgroup says that it was not struck.
        ({"was_killed": True, "oom_kills": 0, "machine_oom_kills": 2}, None),
        # A worker.
        ({"oom_kills": 1}, Cause.HOST_OOM),
        ({"machine_oom_kills": 1}, None),
        (
            {"machine_oom_kills": 1, "stderr": b"worker (pid 612) is killed by signal: Killed. "},
            Cause.HOST_OOM,
        ),
        ({"machine_oom_kills": 1, "stderr": b"x.sh: line 3:  612 Killed  ./a\n"}, Cause.HOST_OOM),
        # It was refused memory, and nobody had to be killed.
        *(
            ({"stderr": words}, Cause.HOST_OOM)
            for words in (
                b"RuntimeError: [enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator:"
                b" can't allocate memory: you tried to allocate 132426121216 bytes. Error code 12"
                b" (Cannot allocate memory)",
                b"numpy._core._exceptions._ArrayMemoryError: Unable to allocate 184. GiB for an"
                b" array with shape (64, 26, 26, 3, 371) and data type float32",
                b'  File "x.py", line 1, in <module>\nMemoryError\n',
                b"OSError: [Errno 12] Cannot allocate memory",
            )
        ),
        ({"stderr": b"MemoryError: std::bad_alloc: out_of_memory: CUDA error at: x.cu"},
         Cause.CUDA_OOM),
        # Killed first, whatever it had said.
        ({"was_killed": True, "oom_kills": 1, "stderr": TORCH}, Cause.HOST_OOM),
        ({"oom_kills": 1, "stderr": TORCH}, Cause.CUDA_OOM),
        ({"xids": (SeenXid("GPU-a", 5, 31),)}, Cause.XID),
        ({"xids": (SeenXid("GPU-a", 5, 48),), "stderr": TORCH}, Cause.XID),
        ({"xids": (SeenXid("GPU-a", 5, 31),), "stderr": TORCH}, Cause.CUDA_OOM),
        # What follows from an end is no cause.
        ({"xids": (SeenXid("GPU-a", 5, 45),)}, None),
        ({"xids": (SeenXid("GPU-a", 5, 121),)}, None),
        ({"xids": (SeenXid("GPU-a", 5, 154), SeenXid("GPU-a", 6, 109))}, Cause.XID),
        ({"xids": (SeenXid("GPU-a", 5, 79), SeenXid("GPU-a", 6, 45))}, Cause.GPU_LOST),
        ({"lost": (3,)}, Cause.GPU_LOST),
        ({"lost": (3,), "stderr": TORCH}, Cause.GPU_LOST),
        ({"stderr": b"OSError: [Errno 28] No space left on device: 'a.pt'"}, Cause.DISK_FULL),
        ({"stderr": b"zip: Disk quota exceeded\n"}, Cause.DISK_FULL),
        (
            {
                "stderr": b"RuntimeError: [enforce fail at inline_container.cc:778] ."
                b" PytorchStreamWriter failed writing file data.pkl: file write failed"
            },
            Cause.DISK_FULL,
        ),
    ],
)  # fmt: skip
def test_each_cause(clues: dict[str, Any], cause: Cause | None) -> None:
    assert found(**clues)[0] is cause


def test_the_message_names_the_gpu_and_the_error() -> None:
    assert found(lost=(3, 4))[1] == "the driver lost GPUs 3 and 4 while it ran"
    message = found(xids=(SeenXid("GPU-a", 5, 31),))[1]
    assert message == "the driver reported XID 31 on GPU 3 (the program used a bad address)"


def test_there_is_advice_for_every_cause() -> None:
    assert set(ADVICE) == set(Cause)


# What shows it


def test_a_snapshot_is_small_whatever_there_was() -> None:
    many = tuple(SeenProcess(pid, "eve", "x" * 120, pid, 0) for pid in range(1000))
    gpus = tuple(replace(GPU, index=index, processes=many) for index in range(40))
    xids = tuple(SeenXid("GPU-a", at, 48) for at in range(100))
    result = causes.find(Clues(TORCH * 500, gpus=gpus, foreign=many, xids=xids))
    assert result is not None
    snapshot = result[1]
    assert len(snapshot.gpus) <= 16
    assert [one.pid for one in snapshot.foreign] == list(range(999, 989, -1))
    assert len(snapshot.gpus[0].processes) <= 10
    assert len(snapshot.xids) <= 16


def test_the_last_lines_are_those_that_a_terminal_showed() -> None:
    text = b"first\n" + b"".join(b"\r%3d%%|" % step for step in range(101)) + b"\n\xff\x1b[2J\n\n"
    assert last_lines(text) == ("first", "100%|", "\ufffd\x1b[2J")


@given(st.binary(max_size=300), st.integers(1, 200))
def test_the_last_lines_are_few_and_short(piece: bytes, times: int) -> None:
    lines = last_lines(piece * times)
    assert len(lines) <= 20
    assert sum(len(line.encode()) for line in lines) <= 4096
    assert all(len(line) <= 500 and "\n" not in line for line in lines)
