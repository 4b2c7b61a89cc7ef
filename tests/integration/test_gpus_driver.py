"""The stand-in driver against programs that others wrote for the real one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.driver import (
    GIB,
    GPU_IS_LOST,
    MIB,
    Driver,
    gpu,
    mig,
    mig_uuid_of,
    process,
    program,
    uuid_of,
)

#: Prints what pynvml says of every GPU.
READ = """
import json, pynvml as n
n.nvmlInit()
found = []
for i in range(n.nvmlDeviceGetCount()):
    h = n.nvmlDeviceGetHandleByIndex(i)
    memory = n.nvmlDeviceGetMemoryInfo(h, n.nvmlMemory_v2)
    found.append({
        "uuid": n.nvmlDeviceGetUUID(h), "name": n.nvmlDeviceGetName(h),
        "bus": n.nvmlDeviceGetPciInfo(h).busId, "total": memory.total, "used": memory.used,
        "used_v1": n.nvmlDeviceGetMemoryInfo(h).used,
        "cc": n.nvmlDeviceGetCudaComputeCapability(h),
        "utilization": n.nvmlDeviceGetUtilizationRates(h).gpu,
        "processes": [(p.pid, p.usedGpuMemory) for p in n.nvmlDeviceGetComputeRunningProcesses(h)],
        "energy": n.nvmlDeviceGetTotalEnergyConsumption(h),
        "temperature": n.nvmlDeviceGetTemperatureV(h, n.NVML_TEMPERATURE_GPU),
        "ecc": n.nvmlDeviceGetTotalEccErrors(h, 1, 0), "rows": n.nvmlDeviceGetRemappedRows(h),
    })
print(json.dumps({"driver": n.nvmlSystemGetDriverVersion(), "gpus": found}))
"""


def python(driver: Driver, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | driver.environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("count", [0, 1, 2, 8, 16])
def test_pynvml_reads_every_gpu(driver: Driver, count: int) -> None:
    kinds = ["h100", "4090", "a100"]
    driver.write(
        *(
            gpu(n, kinds[n % 3], used=n * MIB, ecc=n, process=[process(40 + n, GIB)])
            for n in range(count)
        ),
        driver="580.1",
    )
    done = python(driver, READ)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["driver"] == "580.1"
    assert [one["uuid"] for one in said["gpus"]] == [uuid_of(n) for n in range(count)]
    for n, one in enumerate(said["gpus"]):
        assert (one["used"], one["ecc"], one["processes"]) == (n * MIB, n, [[40 + n, GIB]])
        assert one["used_v1"] > one["used"]


def test_curves_go_on_by_themselves(driver: Driver) -> None:
    driver.write(gpu(0, utilization="0 100 every 0.05"))
    code = """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
seen = set()
while len(seen) < 2:
    seen.add(n.nvmlDeviceGetUtilizationRates(h).gpu)
print(sorted(seen))
"""
    assert python(driver, code).stdout == "[0, 100]\n"


def test_an_event_is_waited_for_and_a_gpu_can_get_lost(driver: Driver) -> None:
    driver.write(gpu(0), gpu(1))
    code = """
import pynvml as n
n.nvmlInit()
handles = [n.nvmlDeviceGetHandleByIndex(i) for i in range(2)]
events = n.nvmlEventSetCreate()
for h in handles:
    n.nvmlDeviceRegisterEvents(h, n.nvmlEventTypeXidCriticalError, events)
print("ready", flush=True)
event = n.nvmlEventSetWait(events, 600_000)
print(n.nvmlDeviceGetUUID(event.device), event.eventData)
for h in handles:
    try:
        n.nvmlDeviceGetTemperature(h, 0); print("fine")
    except n.NVMLError as error:
        print(error.value)
"""
    with program(sys.executable, "-c", code, env=os.environ | driver.environ, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        driver.write(gpu(0), gpu(1, xid="1 79", fault=GPU_IS_LOST, fault__nvmlDeviceGetUUID=0))
        # A GPU's own fault of 0 is no fault where another is said for all functions.
        assert reader.stdout.read().split() == [uuid_of(1), "79", "fine", str(GPU_IS_LOST)]


def test_a_function_hangs_until_the_script_changes(driver: Driver) -> None:
    driver.write(gpu(0), hang__nvmlDeviceGetCount_v2=1)
    code = "import pynvml as n; n.nvmlInit(); print('ready', flush=True); n.nvmlDeviceGetCount()"
    with program(sys.executable, "-c", code, env=os.environ | driver.environ, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        assert reader.poll() is None
        driver.write(gpu(0))
        assert reader.wait(120) == 0


def test_mig_devices_come_and_go(driver: Driver) -> None:
    driver.write(gpu(0, mig=1), mig(1), mig(2))
    code = """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
assert n.nvmlDeviceGetMigMode(h) == [1, 1]
for i in range(n.nvmlDeviceGetMaxMigDeviceCount(h)):
    try:
        m = n.nvmlDeviceGetMigDeviceHandleByIndex(h, i)
    except n.NVMLError_NotFound:
        break
    print(n.nvmlDeviceGetUUID(m), n.nvmlDeviceGetGpuInstanceId(m))
"""
    assert python(driver, code).stdout == f"{mig_uuid_of(1)} 1\n{mig_uuid_of(2)} 2\n"


def installed(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed (pip install {name})")


def foreign(driver: Driver) -> int:
    """Two GPUs, the second one used by this process; its pid."""
    driver.write(
        gpu(0, "4090"),
        gpu(1, "h100", utilization=37, used=5 * GIB, process=[process(os.getpid(), 5 * GIB)]),
    )
    return os.getpid()


def run_module(driver: Driver, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *words],
        env=os.environ | driver.environ | {"COLUMNS": "160", "LINES": "60"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "FunctionNotFound" not in done.stderr
    return done.stdout


def test_gpustat_shows_the_gpus(driver: Driver) -> None:
    installed("gpustat")
    pid = foreign(driver)
    said = json.loads(run_module(driver, "gpustat", "--json", "--no-color"))
    assert [one["name"] for one in said["gpus"]] == [
        "NVIDIA GeForce RTX 4090",
        "NVIDIA H100 80GB HBM3",
    ]
    second = said["gpus"][1]
    assert second["utilization.gpu"] == 37
    assert [(one["pid"], one["gpu_memory_usage"]) for one in second["processes"]] == [
        (pid, 5 * 1024)
    ]


def test_nvitop_shows_the_gpus(driver: Driver) -> None:
    installed("nvitop")
    pid = foreign(driver)
    said = run_module(driver, "nvitop", "-1", "--no-unicode", "--colorful")
    assert "RTX 4090" in said
    assert "37%" in said
    assert str(pid) in said


def test_nvitop_shows_old_gpus_and_parts_of_new_ones(driver: Driver) -> None:
    installed("nvitop")
    parts = [mig(number, used=number * GIB) for number in (1, 2)]
    driver.write(gpu(0, "k80"), gpu(1, mig=1), *parts)
    said = run_module(driver, "nvitop", "-1", "--no-unicode")
    assert "Tesla K80" in said
    for number in (1, 2):
        assert f"1g.10gb @ GI/CI: {number}/0" in said
        assert f"{number * 1024}MiB / 10240MiB" in said


def test_calls_of_many_threads_do_not_disturb_each_other(driver: Driver, tmp_path: Path) -> None:
    driver.write(*(gpu(n) for n in range(8)))
    code = READ.replace("n.nvmlInit()", "") + "\n"
    whole = f"""
import threading, pynvml
pynvml.nvmlInit()
source = {code!r}
def read():
    for _ in range(20):
        exec(source.replace("print(", "str("), {{}})
threads = [threading.Thread(target=read) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("done")
"""
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            driver.write(*(gpu(n) for n in range(8)))

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        done = python(driver, whole)
    finally:
        stop.set()
        writer.join()
    assert done.stdout == "done\n", done.stderr
