"""What a GPU is good for, out of what the driver says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aitbcd.devices import Gpu, GpuState, MigInstance
from aitbcd.gpus import advice
from aitbcd.gpus.drains import Drain, Drains, Xid
from aitbcd.gpus.facts import DeviceFacts, ProcessFacts
from aitbcd.gpus.judge import Judge, Policy

GRACE = 5_000_000
POLICY = Policy(foreign_grace=GRACE, display_memory=512 << 20)
FREE = DeviceFacts(0, "GPU-a", "H100", memory_total=80 << 30)
NOTEBOOK = ProcessFacts(7, True, 1 << 30, uid=1000, command="jupyter", since=1)


def identify(process: ProcessFacts, held: tuple[str, ...]) -> tuple[str | None, str | None]:
    return "bob", process.claim


@pytest.fixture
def drains(tmp_path: Path) -> Drains:
    return Drains(tmp_path / "gpus.json", "boot")


def judge(drains: Drains) -> Judge:
    return Judge(POLICY, drains, identify)


def one(judge: Judge, facts: DeviceFacts, now: int = 0) -> Gpu:
    (gpu,) = judge.gpus([facts], now)
    return gpu


def test_a_gap_of_the_grace_ends_foreign_use(drains: Drains) -> None:
    it = judge(drains)
    seen = []
    # The look before may be long ago: what counts is how long it is known to be left alone.
    for facts, now in (
        (replace(FREE, processes=(NOTEBOOK,)), 0),
        (FREE, 10 * GRACE),
        (FREE, 11 * GRACE - 1),
        (FREE, 11 * GRACE),
    ):
        seen.append((one(it, facts, now).state.value, it.is_settling))
    assert seen == [("foreign", False), ("foreign", True), ("foreign", True), ("free", False)]


def test_a_clock_that_is_set_back_frees_a_gpu_all_the_same(drains: Drains) -> None:
    it = judge(drains)
    one(it, replace(FREE, processes=(NOTEBOOK,)), 1000 * GRACE)
    one(it, FREE, 1000 * GRACE)
    assert one(it, FREE, 0).state is GpuState.FREE


def test_coming_back_in_the_gap_begins_it_anew(drains: Drains) -> None:
    it = judge(drains)
    busy = replace(FREE, processes=(NOTEBOOK,))
    for now in range(0, 10 * GRACE, GRACE - 1):
        assert one(it, busy, now).state is GpuState.FOREIGN
        assert one(it, FREE, now + 1).state is GpuState.FOREIGN


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3 * GRACE)), max_size=20))
def test_a_gpu_is_free_only_after_a_whole_grace_without_use(
    steps: Sequence[tuple[bool, int]],
) -> None:
    it = Judge(POLICY, Drains(Path("/nonexistent/gpus.json"), "boot"), identify)
    now, unused_since, was_used = 0, 0, False
    for is_used, passed in steps:
        now += passed
        facts = replace(FREE, processes=(NOTEBOOK,)) if is_used else FREE
        if is_used:
            was_used, unused_since = True, -1
        elif unused_since < 0:
            unused_since = now
        state = one(it, facts, now).state
        if is_used or (was_used and now - unused_since < GRACE):
            assert state is GpuState.FOREIGN
        else:
            assert state is GpuState.FREE


def test_the_worst_of_several_states_is_told(drains: Drains) -> None:
    it = judge(drains)
    busy = replace(FREE, processes=(replace(NOTEBOOK, claim="job_00000001"),))
    assert one(it, busy).state is GpuState.BUSY
    drains.drain("GPU-a", Drain("fan", "ada", 0))
    assert one(it, busy).state is GpuState.DRAINED
    assert one(it, busy).jobs == ("job_00000001",)
    assert one(it, replace(busy, failure=advice.GPU_IS_LOST)).state is GpuState.LOST


def test_the_largest_foreign_process_is_named_first(drains: Drains) -> None:
    small, large = (
        replace(NOTEBOOK, pid=8, memory=1 << 20),
        replace(NOTEBOOK, pid=9, memory=2 << 30),
    )
    gpu = one(judge(drains), replace(FREE, processes=(small, large, replace(small, pid=10))))
    assert gpu.reason == "bob's process 9 (jupyter) holds 2 GiB and 2 more processes"


def test_the_server_of_mps_is_nobodys_use(drains: Drains) -> None:
    server = ProcessFacts(5, True, 30 << 20, uid=0, command="nvidia-cuda-mps-server")
    assert one(judge(drains), replace(FREE, processes=(server,))).state is GpuState.FREE


@pytest.mark.parametrize(
    "bystander",
    [
        ProcessFacts(5, True, 30 << 20, uid=0, command="nvidia-cuda-mps-server"),
        # More than a server has for itself is of its clients, which are not there.
        ProcessFacts(5, True, 40 << 30, uid=0, command="nvidia-cuda-mps-server"),
        ProcessFacts(6, False, 20 << 20, uid=0, command="Xorg"),
    ],
)
def test_a_bystander_does_not_hide_memory_that_nobody_accounts_for(
    drains: Drains, bystander: ProcessFacts
) -> None:
    facts = replace(FREE, memory_used=40 << 30, processes=(bystander,))
    assert "no process that can be seen" in (one(judge(drains), facts).reason or "")


def test_the_dead_are_of_the_job_that_they_were_seen_to_be_of_while_it_has_the_gpu(
    drains: Drains,
) -> None:
    it = judge(drains)
    held = ["job_00000001"]
    it.jobs_on = lambda uuid: tuple(held)
    worker = replace(NOTEBOOK, claim="job_00000001")
    dead = ProcessFacts(worker.pid, True, worker.memory)
    seen = []
    for processes in ((dead,), (worker,), (dead,), (dead,), (), (dead,)):
        (process,) = one(it, replace(FREE, processes=processes)).processes or (None,)
        seen.append(process and (process.job_id, process.command, process.is_foreign))
    theirs = ("job_00000001", "jupyter", False)
    nobodys = (None, None, True)
    assert seen == [nobodys, theirs, theirs, theirs, None, nobodys]
    one(it, replace(FREE, processes=(worker,)))
    held.clear()
    assert one(it, replace(FREE, processes=(dead,))).state is GpuState.FOREIGN


def test_a_gpu_in_mig_mode_is_no_lost_one_beside_its_parts(drains: Drains) -> None:
    it = judge(drains)
    one(it, FREE)
    part = replace(FREE, uuid="MIG-a", mig=MigInstance("GPU-a", 1, 0))
    assert one(it, part).uuid == "MIG-a"
    assert one(it, FREE).state is GpuState.FREE


def test_an_accepted_xid_counts_again_when_it_comes_again(drains: Drains) -> None:
    it = judge(drains)
    drains.add_xid("GPU-a", Xid(1, 48))
    faulty = one(it, FREE)
    assert faulty.state is GpuState.DRAINED
    drains.resume("GPU-a", faulty.faults)
    assert one(it, FREE).state is GpuState.FREE
    drains.add_xid("GPU-a", Xid(2, 48))
    assert one(it, FREE).state is GpuState.DRAINED


def test_the_list_of_drained_gpus_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    drains = Drains(path, "boot")
    for at in range(200):
        drains.add_xid("GPU-a", Xid(at, 13))
    assert [xid.at for xid in drains.xids("GPU-a")] == list(range(184, 200))
    assert Drains(path, "boot").xids("GPU-a") == drains.xids("GPU-a")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (advice.absent([]), "no NVIDIA GPU was found"),
        (advice.absent(["0000:17:00.0"]), "1 NVIDIA GPU (0000:17:00.0) without a driver"),
        (advice.absent([str(n) for n in range(8)]), "8 NVIDIA GPUs (0, 1, 2, 3, ...)"),
        (
            advice.unusable(18, "x", library_version="580.1", module_version="570.2"),
            "files (580.1) are of another version than its loaded kernel module (570.2)",
        ),
        (advice.unreachable([(3, 15)], 8), "1 of 8 GPUs cannot be used (GPU 3: the driver has"),
        (advice.crashed(-11), "signal 11"),
        (advice.silent(10), "has not answered for 10 s"),
    ],
)
def test_a_problem_is_a_sentence_with_its_values(said: str, expected: str) -> None:
    assert expected in said
