"""``Gpus`` against the scripted driver: what there is, what is wrong, and that it comes back."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest

from aitbcd.devices import Gpu, GpuState, Inventory
from aitbcd.errors import AitbcError, NoSuchFile, StartupError, WrongState
from aitbcd.gpus import Claims, Drains, Gpus
from aitbcd.gpus import driver as installed
from aitbcd.gpus.facts import ProcessFacts
from aitbcd.paths import Paths
from aitbcd.runs import Runs
from aitbcd.settings import Gpus as Settings
from tests.driver import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GIB,
    GPU_IS_LOST,
    LIBRARY,
    MIB,
    NO_PERMISSION,
    RESET_REQUIRED,
    VERSION_MISMATCH,
    Driver,
    gpu,
    mig,
    mig_uuid_of,
    process,
    program,
    uuid_of,
)
from tests.service import DEADLINE_S, children, wait_for

#: What fails is asked again soon, and a foreign process is soon forgotten.
QUICK = Settings(retry_s=0.1, foreign_grace_s=0.2)
#: Of a driver that hangs.
IMPATIENT = Settings(deadline_s=0.3, retry_s=0.1, foreign_grace_s=0.2)


@pytest.fixture(autouse=True)
def found_by_the_loader(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)


@asynccontextmanager
async def opened(
    folder: Path,
    settings: Settings = QUICK,
    job_of: Callable[[ProcessFacts, Collection[str]], str | None] = lambda process, held: None,
    boot_id: str = "this boot",
    learn: Callable[[Iterable[ProcessFacts]], Awaitable[None]] | None = None,
) -> AsyncIterator[Gpus]:
    gpus = Gpus(settings, Drains(folder / "gpus.json", boot_id), job_of, learn)
    gpus.open()
    try:
        yield gpus
    finally:
        await gpus.close()


async def until(gpus: Gpus, what: str, holds: Callable[[Inventory], object]) -> Inventory:
    """Ask until it holds, as users do."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not holds(inventory := await gpus.look(max_age_s=0)):
        assert asyncio.get_running_loop().time() < deadline, f"{what}: {inventory}"
        await asyncio.sleep(0.01)
    return inventory


async def heard(gpus: Gpus, what: str, holds: Callable[[Inventory], object]) -> Inventory:
    """Wait without asking: it has to be told."""
    told: asyncio.Queue[Inventory] = asyncio.Queue()
    gpus.listen(told.put_nowait)
    inventory = gpus.inventory
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not holds(inventory):
                inventory = await told.get()
    except TimeoutError:
        raise AssertionError(f"{what}: {inventory}") from None
    return inventory


def states(inventory: Inventory) -> list[str]:
    return [one.state.value for one in inventory.gpus]


def is_well(inventory: Inventory) -> bool:
    return inventory.problem is None and all(one.state.value == "free" for one in inventory.gpus)


def run(test: Awaitable[None]) -> None:
    async def whole() -> None:
        await test

    asyncio.run(whole())


# --- what there is -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 8, 16])
def test_every_gpu_is_seen_whole(driver: Driver, tmp_path: Path, count: int) -> None:
    kinds = ["h100", "4090", "a100", "k80"]
    driver.write(
        *(
            gpu(n, kinds[n % 4], used=n * MIB, cpus="f0", node=1, temperature=40 + n, energy=5000)
            for n in range(count)
        )
    )

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "they are there", is_well)
        assert (inventory.driver_version, inventory.cuda_version) == ("570.86.15", "12.8")
        assert [one.uuid for one in inventory.gpus] == [uuid_of(n) for n in range(count)]
        for n, one in enumerate(inventory.gpus):
            assert (one.index, one.memory_used, one.temperature) == (n, n * MIB, 40 + n)
            # A K80 counts no energy.
            energy = None if "K80" in one.name else 5.0
            assert (one.cpus, one.numa_node, one.energy) == ((4, 5, 6, 7), 1, energy)
            assert (one.power, one.power_limit) == (70, 700)
            assert len(one.links) == count - 1
        first = inventory.gpus[0]
        assert (first.name, first.compute_capability) == ("NVIDIA H100 80GB HBM3", "9.0")
        assert (first.bus_id, first.memory_total) == ("00000000:01:00.0", 80 * GIB)

    run(test())


def test_near_gpus_are_told_from_far_ones(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, nvlink=uuid_of(1), near=f"{uuid_of(2)} 20"), gpu(1), gpu(2), gpu(3))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            first = (await until(gpus, "they are there", is_well)).gpus[0]
        assert first.links == {uuid_of(1): "nvlink", uuid_of(2): "switches", uuid_of(3): "system"}

    run(test())


def test_mig_devices_are_gpus_of_their_own(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1, mig=1), mig(1, process=[process(os.getpid(), GIB)]), mig(2))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "they are there", lambda seen: seen.gpus)
            assert [one.uuid for one in inventory.gpus] == [
                uuid_of(0),
                mig_uuid_of(1),
                mig_uuid_of(2),
            ]
            assert states(inventory) == ["free", "foreign", "free"]
            one = inventory.gpus[1]
            assert one.mig is not None
            assert (one.mig.parent, one.mig.gpu_instance) == (uuid_of(1), 1)
            assert (one.memory_total, one.utilization, one.index) == (10 * GIB, None, 1)

            driver.write(gpu(0), gpu(1, mig=1))
            inventory = await until(gpus, "they went", lambda seen: len(seen.gpus) == 2)
            assert states(inventory) == ["free", "drained"]
            assert "nvidia-smi mig -cgi" in (inventory.gpus[1].reason or "")

    run(test())


# --- what is wrong -----------------------------------------------------------------------------

PROBLEMS = [
    (DRIVER_NOT_LOADED, "modprobe nvidia"),
    (VERSION_MISMATCH, "reboot needed"),
    (NO_PERMISSION, "/dev/nvidiactl"),
    (999, "Unknown Error (999)"),
]


@pytest.mark.parametrize(("code", "said"), PROBLEMS, ids=lambda value: str(value).split()[0])
def test_a_driver_that_fails_is_explained_and_taken_up_again(
    driver: Driver, tmp_path: Path, code: int, said: str
) -> None:
    driver.write(gpu(0), init=code)

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await heard(gpus, said, lambda seen: said in (seen.problem or ""))
            assert inventory.gpus == ()
            driver.write(gpu(0))
            await heard(gpus, "it works", lambda seen: seen.gpus and is_well(seen))

    run(test())


def test_a_driver_without_gpus_is_a_problem(driver: Driver, tmp_path: Path) -> None:
    driver.write(driver="580.95.05")

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            said = "580.95.05 works and finds no GPU"
            await heard(gpus, said, lambda seen: said in (seen.problem or ""))
            driver.write(gpu(0))
            await heard(gpus, "it is there", lambda seen: seen.gpus and is_well(seen))

    run(test())


def test_without_the_library_no_probe_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")
    if installed.library(os.environ) is not None:
        pytest.skip("this machine has an NVIDIA driver")

    async def test() -> None:
        before = children(os.getpid())
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "it is told", lambda seen: seen.problem)
            assert "NVIDIA GPU" in (inventory.problem or "")
            assert children(os.getpid()) == before

    run(test())


def test_a_library_that_is_no_library_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LIBRARY).write_text("not an ELF file")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "reinstall", lambda seen: "reinstall the driver" in str(seen.problem))

    run(test())


#: What a driver before 510 lacks; the last one for a K80 is 470.
NEWER = (
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetTemperatureV",
)


@pytest.mark.parametrize("kind", ["C", "G", "M"])
def test_an_old_driver_is_asked_in_its_own_way(driver: Driver, tmp_path: Path, kind: str) -> None:
    lacks = {f"fault__{name}": FUNCTION_NOT_FOUND for name in NEWER}
    driver.write(gpu(0, "k80", process=process(os.getpid(), GIB, kind), used=GIB), **lacks)

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "it is seen", lambda seen: seen.gpus)
        assert inventory.problem is None
        (one,) = inventory.gpus
        assert [(each.pid, each.memory) for each in one.processes] == [(os.getpid(), GIB)]
        assert (one.memory_total, one.temperature) == (12 * GIB, 30)

    run(test())


def test_a_driver_that_hangs_is_told_and_taken_up_again(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def test() -> None:
        async with opened(tmp_path, IMPATIENT) as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus and is_well(seen))
            driver.write(gpu(0), hang__nvmlDeviceGetMemoryInfo_v2=1)
            inventory = await until(
                gpus, "it hangs", lambda seen: "not answered" in str(seen.problem)
            )
            assert states(inventory) == ["lost"]
            driver.write(gpu(0))
            await heard(gpus, "it answers", lambda seen: seen.gpus and is_well(seen))

    run(test())


def test_a_driver_that_hangs_from_the_start_does_not_stall_who_asks(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), hang__nvmlInitWithFlags=1)

    async def test() -> None:
        async with opened(tmp_path, Settings(deadline_s=3600, retry_s=0.1)) as gpus:
            inventory = await gpus.look()
            assert "has not answered yet" in str(inventory.problem)
            driver.write(gpu(0))
            await heard(gpus, "it answers", lambda seen: seen.gpus and is_well(seen))

    run(test())


def test_a_probe_that_is_killed_is_replaced(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def test() -> None:
        before = set(children(os.getpid()))
        async with opened(tmp_path) as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus and is_well(seen))
            (probe,) = set(children(os.getpid())) - before
            os.kill(probe, signal.SIGKILL)
            await until(gpus, "signal 9", lambda seen: "signal 9" in str(seen.problem))
            await heard(gpus, "it answers", lambda seen: seen.gpus and is_well(seen))

    run(test())


def test_a_look_that_fails_by_itself_is_repeated(
    driver: Driver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver.write(gpu(0))
    said = "can't start new thread"
    is_possible = True

    async def learn(processes: Iterable[ProcessFacts]) -> None:
        if not is_possible:
            raise RuntimeError(said)

    async def test() -> None:
        nonlocal is_possible
        async with opened(tmp_path, learn=learn) as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus and is_well(seen))
            is_possible = False
            inventory = await gpus.look(max_age_s=-1)
            assert said in (inventory.problem or "")
            assert states(inventory) == ["lost"]
            # It fails again when nobody asks.
            async with asyncio.timeout(DEADLINE_S):
                while gpus.inventory is inventory:
                    await asyncio.sleep(0.01)
            is_possible = True
            await heard(gpus, "it is seen", lambda seen: seen.gpus and is_well(seen))
        assert caplog.text.count("a look failed") == 1

    run(test())


def test_a_probe_ends_with_its_daemon(driver: Driver, tmp_path: Path) -> None:
    """Also where the daemon is killed while the driver hangs."""
    driver.write(gpu(0), hang__nvmlDeviceGetCount_v2=1)
    code = """
import asyncio, sys
from pathlib import Path
from aitbcd.gpus import Drains, Gpus
from aitbcd.settings import Gpus as Settings
async def main():
    gpus = Gpus(Settings(), Drains(Path(sys.argv[1]), ""), lambda process: None)
    gpus.open()
    while gpus._child is None:
        await asyncio.sleep(0.01)
    print(gpus._child._process.pid, flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""
    with program(sys.executable, "-c", code, str(tmp_path / "gpus.json")) as daemon:
        assert daemon.stdout is not None
        probe = int(daemon.stdout.readline())
        handle = os.pidfd_open(probe)
        _wait_until_it_hangs(probe)
        daemon.kill()
        os.set_blocking(handle, False)
        assert select.select([handle], [], [], DEADLINE_S)[0], "the probe lives on"
        os.close(handle)


def _wait_until_it_hangs(pid: int) -> None:
    """The stand-in waits with inotify for its script to change."""

    def hangs() -> bool:
        return any("inotify" in _target(f"/proc/{pid}/fd/{fd}") for fd in range(16))

    wait_for("the probe waits inside the driver", hangs)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def test_a_lost_gpu_is_told_and_the_others_go_on(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1), gpu(2))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "they are there", lambda seen: seen.gpus and is_well(seen))
            driver.write(gpu(0), gpu(1, fault=GPU_IS_LOST), gpu(2))
            inventory = await until(gpus, "lost", lambda seen: "lost" in states(seen))
            assert states(inventory) == ["free", "lost", "free"]
            assert "fell off the bus" in (inventory.gpus[1].reason or "")
            # After a reset it is found by its UUID, whatever number it has then.
            driver.write(gpu(1), gpu(0), gpu(2))
            inventory = await heard(gpus, "it is back", is_well)
            assert {one.uuid: one.index for one in inventory.gpus} == {
                uuid_of(1): 0,
                uuid_of(0): 1,
                uuid_of(2): 2,
            }

    run(test())


def test_a_gpu_that_is_gone_stays_in_the_list(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "they are there", lambda seen: seen.gpus and is_well(seen))
            driver.write(gpu(0))
            said = "does not find it any more"
            inventory = await until(gpus, said, lambda seen: said in str(seen.gpus[-1].reason))
            assert (inventory.gpus[1].uuid, states(inventory)) == (uuid_of(1), ["free", "lost"])

    run(test())


def test_a_gpu_that_needs_a_reset_is_drained(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, fault__nvmlDeviceGetMemoryInfo_v2=RESET_REQUIRED))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "drained", lambda seen: states(seen) == ["drained"])
            assert "--gpu-reset" in (inventory.gpus[0].reason or "")
            driver.write(gpu(0))
            await heard(gpus, "it was reset", is_well)

    run(test())


def test_an_upgrade_under_a_running_daemon_means_reboot(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that is loaded still works; what jobs would load does not."""
    folder = tmp_path / "lib"
    folder.mkdir()
    shutil.copy(driver.library, folder / LIBRARY)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    driver.write(gpu(0))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus and is_well(seen))
            # What was initialized before goes on: only new programs get the mismatch.
            driver.write(gpu(0), init=VERSION_MISMATCH)
            assert is_well(await gpus.look(max_age_s=-1))
            shutil.copy(driver.library, folder / "new")
            os.replace(folder / "new", folder / LIBRARY)
            inventory = await until(
                gpus, "reboot", lambda seen: "reboot needed" in str(seen.problem)
            )
            assert states(inventory) == ["lost"]

    run(test())


# --- faults ------------------------------------------------------------------------------------


def test_an_xid_drains_its_gpu_without_being_asked_about(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "they are there", lambda seen: seen.gpus and is_well(seen))
            driver.write(gpu(0), gpu(1, xid="1 48"))
            inventory = await heard(gpus, "drained", lambda seen: "drained" in states(seen))
            assert states(inventory) == ["free", "drained"]
            assert "XID 48, an uncorrectable memory error" in (inventory.gpus[1].reason or "")
        # The fault is one of the GPU, not of the daemon; a boot resets the GPU.
        driver.write(gpu(0), gpu(1))
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "they are there", lambda seen: seen.gpus)
            assert states(inventory) == ["free", "drained"]
        async with opened(tmp_path, boot_id="the next boot") as gpus:
            await until(gpus, "they are there", lambda seen: seen.gpus and is_well(seen))

    run(test())


def test_an_xid_that_a_program_caused_does_not_drain(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "they are there", lambda seen: seen.gpus and is_well(seen))
            # Events come in order: when the second one counts, the first one has been heard.
            driver.write(gpu(0, xid="1 31"), gpu(1, xid="2 79"))
            inventory = await heard(gpus, "drained", lambda seen: "drained" in states(seen))
            assert states(inventory) == ["free", "drained"]

    run(test())


def test_memory_faults_drain_until_somebody_lives_with_them(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, ecc=3), gpu(1, remap="0 1 1 0"), gpu(2, remap="0 0 0 1"))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "drained", lambda seen: seen.gpus)
            assert states(inventory) == ["drained"] * 3
            reasons = [one.reason or "" for one in inventory.gpus]
            assert "3 uncorrectable memory errors" in reasons[0]
            assert "is to be remapped" in reasons[1]
            assert "could not be remapped" in reasons[2]
            assert all("--gpu-reset" in reason for reason in reasons)

            assert (await gpus.resume(uuid_of(0))).state is GpuState.FREE
            driver.write(gpu(0, ecc=4), gpu(1), gpu(2))
            inventory = await until(gpus, "one more", lambda seen: states(seen)[1] == "free")
            assert states(inventory) == ["drained", "free", "free"]

    run(test())


def test_an_xid_during_a_look_is_followed_by_another_look(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))
    slow = gpu(1, hang__nvmlDeviceGetUtilizationRates=1)
    lost = gpu(0, xid="1 79", fault=GPU_IS_LOST)

    async def test() -> None:
        async with opened(tmp_path, Settings(deadline_s=3600)) as gpus:
            await until(gpus, "they are there", lambda seen: seen.gpus and is_well(seen))
            driver.write(gpu(0), slow)
            # The look has read the first GPU, and waits for the second one.
            assert is_well(await gpus.look(max_age_s=0))
            driver.write(lost, slow)
            while not (tmp_path / "gpus.json").exists():
                await asyncio.sleep(0.01)
            driver.write(lost, gpu(1))
            inventory = await heard(gpus, "lost", lambda seen: "lost" in states(seen))
            assert states(inventory) == ["lost", "free"]

    run(test())


def test_errors_are_heard_again_after_the_waiting_failed(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1), fault__nvmlEventSetWait_v2=GPU_IS_LOST)

    async def test() -> None:
        before = set(children(os.getpid()))
        async with opened(tmp_path) as gpus:
            await until(gpus, "they are there", lambda seen: seen.gpus and is_well(seen))
            (deaf,) = set(children(os.getpid())) - before
            await until(gpus, "another probe", lambda _: deaf not in children(os.getpid()))
            driver.write(gpu(0), gpu(1))
            # A probe is told what comes after it has registered: one more each time until then.
            serial = 0

            def is_heard(inventory: Inventory) -> bool:
                nonlocal serial
                serial += 1
                driver.write(gpu(0), gpu(1, xid=f"{serial} 79"))
                return "drained" in states(inventory)

            await until(gpus, "it is heard", is_heard)

    run(test())


# --- drained -----------------------------------------------------------------------------------


def test_a_wish_to_drain_outlives_daemon_and_boot(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            drained = await gpus.drain(uuid_of(1), "new fan", "ada")
            assert (drained.state, drained.reason) == (GpuState.DRAINED, "new fan (drained by ada)")
        driver.write(gpu(1), gpu(0))
        async with opened(tmp_path, boot_id="the next boot") as gpus:
            inventory = await until(gpus, "they are there", lambda seen: seen.gpus)
            assert [(one.uuid, one.state.value) for one in inventory.gpus] == [
                (uuid_of(1), "drained"),
                (uuid_of(0), "free"),
            ]
            assert (await gpus.resume(uuid_of(1))).state is GpuState.FREE
        async with opened(tmp_path) as gpus:
            await until(gpus, "they are there", lambda seen: seen.gpus and is_well(seen))

    run(test())


def test_draining_a_gpu_drains_its_mig_devices(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, mig=1, ecc=1), mig(1), mig(2))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "they are there", lambda seen: seen.gpus)
            assert states(inventory) == ["drained", "drained"]
            assert (await gpus.resume(mig_uuid_of(1))).state is GpuState.FREE

    run(test())


def test_a_divided_gpu_is_drained_and_resumed_as_a_whole(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))
    whole, part = uuid_of(0), mig_uuid_of(1)

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus and is_well(seen))
            await gpus.drain(whole, "new fan", "ada")
            # It is divided afterwards.
            driver.write(gpu(0, mig=1), mig(1), mig(2))
            await until(gpus, "its parts", lambda seen: states(seen) == ["drained", "drained"])
            with pytest.raises(WrongState, match="the whole GPU of MIG-") as refused:
                await gpus.resume(part)
            assert refused.value.hint == f"aitbcctl gpus resume {whole}"
            assert (await gpus.resume(whole)).state is GpuState.FREE
            with pytest.raises(WrongState, match="is free, not drained"):
                await gpus.resume(whole)

            assert (await gpus.drain(whole, "dust", "ada")).state is GpuState.DRAINED
            await gpus.resume(whole)
            await gpus.drain(part, "slow", "ada")
            with pytest.raises(WrongState, match="not drained as a whole") as refused:
                await gpus.resume(whole)
            assert refused.value.hint == f"aitbcctl gpus resume {part}"
            await gpus.resume(part)

            driver.write(gpu(0, mig=1, ecc=3), mig(1), mig(2))
            inventory = await until(gpus, "faulty", lambda seen: "free" not in states(seen))
            assert f"then aitbcctl gpus resume {whole}" in (inventory.gpus[0].reason or "")
            await gpus.resume(whole)
            assert is_well(await gpus.look(max_age_s=-1))

    run(test())


def test_what_cannot_be_drained_or_resumed_is_refused(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus)
            with pytest.raises(NoSuchFile, match="there is no GPU GPU-nonsense"):
                await gpus.drain("GPU-nonsense", "x", "ada")
            with pytest.raises(WrongState, match="is free, not drained"):
                await gpus.resume(uuid_of(0))
            assert json.loads((tmp_path / "gpus.json").read_text())["drained"] == {}

    run(test())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b'{"format": 2}', b'{"drained": []}', b"[]"]
)
def test_a_broken_list_of_drained_gpus_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gpus.json"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=r"gpus\.json") as refused:
        Drains(path, "")
    assert refused.value.hint
    assert path.read_bytes() == content


def test_a_drain_that_cannot_be_stored_is_none(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def test() -> None:
        async with opened(tmp_path / "gone") as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus)
            with pytest.raises(AitbcError, match=r"gpus\.json could not be written"):
                await gpus.drain(uuid_of(0), "x", "ada")
            assert is_well(await gpus.look(max_age_s=-1))

    run(test())


# --- processes ---------------------------------------------------------------------------------


def sleeper(**environ: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return program("sleep", "3600", env=os.environ | environ)


def first(inventory: Inventory) -> Gpu:
    return inventory.gpus[0]


def test_a_foreign_process_is_named_and_its_gpu_taken(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus and is_well(seen))
            with sleeper() as notebook:
                # Memory held without a kernel that runs is use.
                driver.write(
                    gpu(0, used=5 * GIB, process=[process(notebook.pid, 5 * GIB)], utilization=0)
                )
                seen = first(await until(gpus, "foreign", lambda now: states(now) == ["foreign"]))
            user = pwd.getpwuid(os.getuid()).pw_name
            (one,) = seen.processes
            assert (one.pid, one.user, one.memory) == (notebook.pid, user, 5 * GIB)
            assert (one.command, one.job_id, one.is_foreign) == ("sleep 3600", None, True)
            assert one.since is not None
            assert seen.reason == f"{user}'s process {notebook.pid} (sleep 3600) holds 5 GiB"
            driver.write(gpu(0))
            # Nobody asks: it is free by itself after the grace.
            await gpus.look(max_age_s=-1)
            await heard(gpus, "free", is_well)

    run(test())


def test_a_gpu_is_given_while_it_is_looked_whose_its_processes_are(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, used=GIB, process=[process(os.getpid(), GIB)]))
    is_known, is_asked = asyncio.Event(), asyncio.Event()
    is_known.set()

    async def learn(processes: Iterable[ProcessFacts]) -> None:
        is_asked.set()
        await is_known.wait()

    async def test() -> None:
        async with opened(tmp_path, learn=learn) as gpus:
            await until(gpus, "foreign", lambda seen: states(seen) == ["foreign"])
            # Its user has no process there any more.
            driver.write(gpu(0))
            is_known.clear()
            is_asked.clear()
            looking = asyncio.create_task(gpus.look(max_age_s=-1))
            async with asyncio.timeout(DEADLINE_S):
                await is_asked.wait()
            gpus.oversee(lambda uuid: ("job_00000001",), lambda uuid: None)
            gpus.review()
            (one,) = first(gpus.inventory).processes
            assert one.user == pwd.getpwuid(os.getuid()).pw_name
            assert first(gpus.inventory).jobs == ("job_00000001",)
            is_known.set()
            assert first(await looking).processes == ()

    run(test())


def test_a_gap_between_two_cells_is_not_leaving(driver: Driver, tmp_path: Path) -> None:
    busy = gpu(0, used=GIB, process=[process(os.getpid(), GIB)])
    driver.write(busy)

    async def test() -> None:
        async with opened(tmp_path, Settings(foreign_grace_s=3600)) as gpus:
            await until(gpus, "foreign", lambda seen: states(seen) == ["foreign"])
            driver.write(gpu(0))
            gap = first(await until(gpus, "gap", lambda seen: not first(seen).processes))
            assert gap.state is GpuState.FOREIGN
            assert (gap.reason or "").endswith("a moment ago")

    run(test())


def test_a_display_server_is_no_foreign_process(driver: Driver, tmp_path: Path) -> None:
    driver.write(
        gpu(0, process=[process(os.getpid(), 40 * MIB, "G")]),
        gpu(1, process=[process(os.getpid(), 4 * GIB, "G")]),
        gpu(2, process=[process(os.getpid(), MIB, "C")]),
        gpu(3, process=[process(os.getpid(), None, "M")]),
    )

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "they are there", lambda seen: seen.gpus)
            assert states(inventory) == ["free", "foreign", "foreign", "foreign"]
            assert [len(one.processes) for one in inventory.gpus] == [1, 1, 1, 1]

    run(test())


def test_memory_that_nobody_holds_visibly_is_foreign_use(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, used=30 * GIB), gpu(1, used=300 * MIB))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "they are there", lambda seen: seen.gpus)
            assert states(inventory) == ["foreign", "free"]
            assert "30 GiB of its memory are held by no process" in (first(inventory).reason or "")

    run(test())


def test_a_process_whose_pid_is_nobody_here_is_foreign(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, process=[process(2**22 + 1, GIB)]))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            inventory = await until(gpus, "foreign", lambda seen: states(seen) == ["foreign"])
            (one,) = first(inventory).processes
            assert (one.user, one.command, one.since) == (None, None, None)
            assert first(inventory).reason == "somebody's process 4194305 holds 1 GiB"

    run(test())


def test_a_job_that_runs_is_known_by_its_package(driver: Driver, tmp_path: Path) -> None:
    where = Paths(tmp_path, tmp_path, tmp_path)
    claims = Claims(where, Runs(where, boot_id=""))
    (tmp_path / "results" / ".job_00000001").mkdir(parents=True)

    async def test() -> None:
        async with opened(tmp_path, job_of=claims.job_of) as gpus:
            with (
                sleeper(AITBC_JOB_ID="job_00000001") as ours,
                sleeper(AITBC_JOB_ID="job_00000002") as liar,
                sleeper(AITBC_JOB_ID="../job_00000001") as hostile,
            ):
                driver.write(
                    gpu(0, process=[process(ours.pid, GIB), process(ours.pid, GIB, "M")]),
                    gpu(1, process=[process(liar.pid, GIB)]),
                    gpu(2, process=[process(hostile.pid, GIB)]),
                    gpu(3, process=[process(ours.pid, GIB), process(liar.pid, GIB)]),
                )
                inventory = await until(gpus, "busy", lambda seen: "busy" in states(seen))
            assert states(inventory) == ["busy", "foreign", "foreign", "busy"]
            assert [one.jobs for one in inventory.gpus] == [
                ("job_00000001",),
                (),
                (),
                ("job_00000001",),
            ]
            assert len(inventory.gpus[0].processes) == 1
            # Who shares a GPU with a job past the queue is told.
            assert inventory.gpus[0].reason is None
            assert str(liar.pid) in (inventory.gpus[3].reason or "")

    run(test())


def test_a_worker_that_overwrote_its_environment_is_still_the_jobs(
    driver: Driver, tmp_path: Path
) -> None:
    where = Paths(tmp_path, tmp_path, tmp_path)
    claims = Claims(where, Runs(where, boot_id=""))
    (tmp_path / "results" / ".job_00000001").mkdir(parents=True)
    # A child without the variable, as after setproctitle; one in a session of its own, too.
    line = "env -i sleep 3600 & env -i setsid sleep 3600 & echo $!; wait"

    async def test() -> None:
        environ = os.environ | {"AITBC_JOB_ID": "job_00000001"}
        with program("/bin/sh", "-c", line, env=environ) as job:
            assert job.stdout is not None
            job.stdout.readline()
            workers = children(job.pid)
            assert len(workers) == 2
            driver.write(*(gpu(n, process=[process(pid, GIB)]) for n, pid in enumerate(workers)))
            async with opened(tmp_path, job_of=claims.job_of) as gpus:
                inventory = await until(gpus, "they are there", lambda seen: seen.gpus)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
        assert [one.jobs for one in inventory.gpus] == [("job_00000001",)] * 2

    run(test())


GROUP = "/system.slice/aitbcd-jobs.service/job_00000001.1"


@pytest.mark.parametrize(
    ("cgroup", "job"),
    [
        (GROUP, "job_00000001"),
        (f"{GROUP}/of-its-own", "job_00000001"),
        # Anybody can make such a one below what is his.
        ("/user.slice/user-1000.slice/aitbcd-jobs.service/job_00000001.1", None),
        ("/user.slice/user-1000.slice/job_00000001.1", None),
        ("/system.slice/aitbcd-jobs.service/supervisors", None),
        (GROUP.replace("01.1", "02.1"), None),
    ],
)
def test_the_cgroup_of_an_attempt_says_whose_a_process_is(
    tmp_path: Path, cgroup: str, job: str | None
) -> None:
    where = Paths(tmp_path, tmp_path, tmp_path)
    runs = Runs(where, boot_id="")
    runs.cgroups = {"folder": f"/sys/fs/cgroup{Path(GROUP).parent}", "controllers": ()}
    where.building("job_00000001").mkdir(parents=True)
    # Of another user than the job, and its environment cannot be read.
    process = ProcessFacts(4711, True, GIB, os.getuid() + 1, cgroups=(cgroup,))
    assert Claims(where, runs).job_of(process) == job
    runs.cgroups = None
    assert Claims(where, runs).job_of(process) is None


def test_what_a_job_left_is_its_own_until_its_gpus_are_free(tmp_path: Path) -> None:
    where = Paths(tmp_path, tmp_path, tmp_path)
    claims = Claims(where, Runs(where, boot_id=""))
    process = ProcessFacts(4711, True, GIB, os.getuid(), claim="job_00000001")
    where.package("job_00000001").mkdir(parents=True)
    assert claims.job_of(process, held=("job_00000001",)) == "job_00000001"
    assert claims.job_of(process, held=("job_00000002",)) is None


# --- what it costs -----------------------------------------------------------------------------


def test_questions_at_the_same_time_are_one_look(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def test() -> None:
        async with opened(tmp_path) as gpus:
            await until(gpus, "it is there", lambda seen: seen.gpus)
            answers = await asyncio.gather(*(gpus.look(max_age_s=0) for _ in range(50)))
            assert len({id(answer) for answer in answers}) == 1
            assert await gpus.look(max_age_s=3600) is answers[0]

    run(test())
