"""The probe: a process that asks NVML, so that the daemon never does. Sole importer of ``pynvml``.

A driver that hangs does so in uninterruptible sleep, where not even SIGKILL ends a process: a
thread of the daemon there would keep the daemon's locks and sockets from the next one. And a new
probe loads the library anew: after an upgrade of the driver the old one goes on speaking with the
old kernel module, while every new program fails, which the daemon has to know.

Each line on standard input asks for a report, or, where it names some, for a sample of those GPUs;
the answers, and XID errors as they come, are lines of JSON (``facts.Message``). Where NVML cannot
be used it says so and ends. EOF ends it, too.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pynvml as nvml
from msgspec.structs import replace

from aitbcd.devices import MigInstance
from aitbcd.gpus import processes
from aitbcd.gpus.facts import (
    DeviceFacts,
    Failure,
    Fault,
    Message,
    ProcessFacts,
    Report,
    Unreachable,
)

T = TypeVar("T")
Handle = Any
_PR_SET_PDEATHSIG = 1
#: An event is waited for this long at a time.
_WAIT_MS = 3_600_000
#: Sets of cores and of NUMA nodes as words of 64 bits: 8192 cores.
_WORDS = 128
_KNOWN_MAX = 4096
#: The library among our mappings (proc_pid_maps(5)). Its inode there is another one than stat's on
#: some file systems (overlayfs).
_LIBRARY = re.compile(rb"/\S*libnvidia-ml\.so\S*")
#: The driver as a whole is out of use.
_DRIVER_FAILS = frozenset(
    {
        nvml.NVML_ERROR_UNINITIALIZED,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
#: The device as a whole is out of use, so that the next function need not be asked.
_DEVICE_FAILS = frozenset(
    {
        nvml.NVML_ERROR_GPU_IS_LOST,
        nvml.NVML_ERROR_RESET_REQUIRED,
        nvml.NVML_ERROR_INSUFFICIENT_POWER,
        nvml.NVML_ERROR_IRQ_ISSUE,
    }
)
#: Who uses a device: functions of drivers before 510 behind those of today, and whether it
#: computes. By version, as pynvml raises something of its own where a driver lacks an unversioned.
_LISTS = (
    (
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
        False,
    ),
    (
        nvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetMPSComputeRunningProcesses_v2,
        True,
    ),
    (
        nvml.nvmlDeviceGetComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetComputeRunningProcesses_v2,
        True,
    ),
)
_ANCESTORS = {
    nvml.NVML_TOPOLOGY_INTERNAL: "board",
    nvml.NVML_TOPOLOGY_SINGLE: "switch",
    nvml.NVML_TOPOLOGY_MULTIPLE: "switches",
    nvml.NVML_TOPOLOGY_HOSTBRIDGE: "host-bridge",
    nvml.NVML_TOPOLOGY_NODE: "node",
}


def main() -> None:
    """Serve until standard input ends."""
    send = Sender(_private_stdout())
    _die_with_parent()
    try:
        session = Session()
        session.watch(send)
        for line in sys.stdin.buffer:
            if session.is_outdated():
                send(Message(is_outdated=True))
                break
            if uuids := line.decode().split():
                send(Message(sample=tuple(session.sample(uuids))))
            else:
                send(Message(report=session.report()))
    except nvml.NVMLError as problem:
        send(Message(failure=Failure(problem.value, str(problem))))
    # Without the interpreter's farewell: a thread waits inside NVML.
    os._exit(0)


def _private_stdout() -> int:
    """Return where answers go; what a library prints goes to stderr."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def _die_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent or parent == 1:
        os._exit(0)


class Sender:
    """Writes whole lines, from two threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, message: Message) -> None:
        line = memoryview(self._encode(message) + b"\n")
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError:
                os._exit(0)  # the daemon is gone


class Session:
    """One life of NVML. What does not change is read once."""

    def __init__(self) -> None:
        """Initialize NVML, which enumerates the GPUs.

        Raises:
            NVMLError: it cannot be used.
        """
        nvml.nvmlInit()
        self._library = _loaded_library()
        self._driver_version = nvml.nvmlSystemGetDriverVersion()
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
        self._cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        self._boot_at = processes.boot_at()
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        self._is_whole = not processes.are_arguments_hidden(mounts)
        #: By UUID: index and handle; the facts that stay.
        self._gpus: dict[str, tuple[int, Handle]] = {}
        self._lasting: dict[str, DeviceFacts] = {}
        self._unreachable: list[Unreachable] = []
        #: What a job can have, as it was last reported, but for what ``_with_use`` reads.
        self._reported: dict[str, tuple[DeviceFacts, Handle]] = {}
        #: By pid and start: what a process says of its job does not change; it costs many reads.
        self._known: dict[tuple[int, int | None], ProcessFacts] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._gpus[nvml.nvmlDeviceGetUUID(handle)] = (index, handle)
            except nvml.NVMLError as problem:
                self._unreachable.append(Unreachable(index, problem.value))

    def is_outdated(self) -> bool:
        """Tell whether the library was replaced on disk since it was loaded."""
        return self._library is not None and _identity(self._library[0]) != self._library[1]

    def report(self) -> Report:
        """Read everything.

        Raises:
            NVMLError: the driver as a whole fails.
        """
        devices: list[DeviceFacts] = []
        self._reported.clear()
        for uuid, (index, handle) in self._gpus.items():
            try:
                devices += self._devices(index, uuid, handle)
            except nvml.NVMLError as problem:
                if problem.value in _DRIVER_FAILS:
                    raise
                kept = self._lasting.get(uuid, DeviceFacts(index, uuid, "unknown GPU"))
                devices.append(replace(kept, failure=problem.value))
        return Report(
            self._driver_version, self._cuda_version, tuple(devices), tuple(self._unreachable)
        )

    def sample(self, uuids: Iterable[str]) -> Iterator[DeviceFacts]:
        """Read what changes all the time of some GPUs: a fifth of what a report costs.

        One that is not there any more is left out.

        Raises:
            NVMLError: the driver as a whole fails.
        """
        for facts, handle in filter(None, map(self._reported.get, uuids)):
            try:
                yield self._with_use(facts, handle, is_quick=True)
            except nvml.NVMLError as problem:
                if problem.value in _DRIVER_FAILS:
                    raise
                if problem.value in _DEVICE_FAILS:
                    yield replace(facts, failure=problem.value)

    def _devices(self, index: int, uuid: str, handle: Handle) -> Iterator[DeviceFacts]:
        """Yield a GPU, or its MIG devices instead where there are some."""
        lasting = self._lasting.get(uuid)
        if lasting is None:
            lasting = self._lasting[uuid] = self._lasting_facts(index, uuid, handle)
        mode = _maybe(nvml.nvmlDeviceGetMigMode, handle)
        gpu = replace(_with_health(lasting, handle), is_divided=bool(mode and mode[0]))
        parts = list(self._parts(gpu, handle)) if gpu.is_divided else []
        if parts:
            yield from parts
        else:
            yield self._with_use(gpu, handle)

    def _lasting_facts(self, index: int, uuid: str, handle: Handle) -> DeviceFacts:
        capability = _maybe(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        pci = _maybe(nvml.nvmlDeviceGetPciInfo, handle)
        scope = nvml.NVML_AFFINITY_SCOPE_NODE
        nodes = _maybe(nvml.nvmlDeviceGetMemoryAffinity, handle, _WORDS, scope)
        cores = _maybe(nvml.nvmlDeviceGetCpuAffinity, handle, _WORDS)
        return DeviceFacts(
            index=index,
            uuid=uuid,
            name=nvml.nvmlDeviceGetName(handle),
            bus_id=_text(pci.busId) if pci else None,
            compute_capability="{}.{}".format(*capability) if capability else None,
            numa_node=next(iter(_bits(nodes)), None),
            cpus=tuple(_bits(cores)),
            links={
                other: _link(handle, its_handle)
                for other, (_, its_handle) in self._gpus.items()
                if other != uuid
            },
        )

    def _parts(self, gpu: DeviceFacts, handle: Handle) -> Iterator[DeviceFacts]:
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            # NOT_FOUND: places need not be filled in order.
            part = _maybe(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            if part is None:
                continue
            instance = MigInstance(
                gpu.uuid,
                nvml.nvmlDeviceGetGpuInstanceId(part),
                nvml.nvmlDeviceGetComputeInstanceId(part),
            )
            facts = replace(
                gpu,
                uuid=nvml.nvmlDeviceGetUUID(part),
                name=nvml.nvmlDeviceGetName(part),
                links={},
                mig=instance,
                is_divided=False,
            )
            yield self._with_use(facts, part)

    def _with_use(
        self, facts: DeviceFacts, handle: Handle, *, is_quick: bool = False
    ) -> DeviceFacts:
        """Return the facts with readings, memory and processes, of a GPU or of a MIG device."""
        self._reported[facts.uuid] = facts, handle
        if facts.mig is None:
            facts = _with_readings(facts, handle)
        memory = _maybe(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        # Without the second version (before 510) what the driver itself needs counts as used.
        memory = memory or _maybe(nvml.nvmlDeviceGetMemoryInfo, handle)
        return replace(
            facts,
            memory_total=memory.total if memory else 0,
            memory_used=memory.used if memory else 0,
            processes=tuple(self._processes(handle, is_quick=is_quick)),
        )

    def _processes(self, handle: Handle, *, is_quick: bool) -> Iterator[ProcessFacts]:
        found: dict[int, tuple[bool, int | None]] = {}
        for ask, ask_old, is_compute in _LISTS:
            listed = _maybe(ask, handle)
            for one in _maybe(ask_old, handle) or () if listed is None else listed:
                _, memory = found.get(one.pid, (False, None))
                found[one.pid] = (is_compute, one.usedGpuMemory or memory)
        for pid, (is_compute, memory) in sorted(found.items()):
            yield self._process(pid, is_compute, memory, is_quick=is_quick)

    def _process(
        self, pid: int, is_compute: bool, memory: int | None, *, is_quick: bool
    ) -> ProcessFacts:
        uid = processes.uid_of(pid)
        if uid is None:
            return ProcessFacts(pid, is_compute, memory)
        since = processes.started_at(pid, self._boot_at)
        known = self._known.get((pid, since))
        if known is not None and is_quick:
            return replace(known, is_compute=is_compute, memory=memory, uid=uid)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        command = processes.command_of(pid, is_whole=self._is_whole)
        if known is not None:
            found = replace(known, is_compute=is_compute, memory=memory, uid=uid, command=command)
        else:
            found = ProcessFacts(
                pid,
                is_compute,
                memory,
                uid,
                command,
                since,
                processes.claim_of(pid),
                processes.ancestors_of(pid),
                processes.cgroups_of(pid),
            )
        self._known[pid, since] = found
        return found

    # -- events ---------------------------------------------------------------------------------

    def watch(self, send: Sender) -> None:
        """Tell of XID errors from now on, from a thread that waits for them."""
        events = _maybe(nvml.nvmlEventSetCreate)
        wanted = nvml.nvmlEventTypeXidCriticalError
        watched = 0
        for _, handle in self._gpus.values():
            if (_maybe(nvml.nvmlDeviceGetSupportedEventTypes, handle) or 0) & wanted:
                try:
                    nvml.nvmlDeviceRegisterEvents(handle, wanted, events)
                    watched += 1
                except nvml.NVMLError:
                    pass  # it is lost, which the report says
        if watched:
            threading.Thread(target=self._wait, args=(events, send), daemon=True).start()

    def _wait(self, events: Handle, send: Sender) -> None:
        by_address = {_address(handle): uuid for uuid, (_, handle) in self._gpus.items()}
        while True:
            try:
                event = nvml.nvmlEventSetWait(events, _WAIT_MS)
            except nvml.NVMLError_Timeout:
                continue
            except nvml.NVMLError:
                # A GPU among those that are waited for is lost: nothing more comes of this set.
                send(Message(is_disturbed=True))
                return
            uuid = by_address.get(_address(event.device))
            send(
                Message(fault=Fault(uuid, event.eventData)) if uuid else Message(is_disturbed=True)
            )


def _with_health(facts: DeviceFacts, handle: Handle) -> DeviceFacts:
    rows = _maybe(nvml.nvmlDeviceGetRemappedRows, handle)
    uncorrected = _maybe(
        nvml.nvmlDeviceGetTotalEccErrors,
        handle,
        nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        nvml.NVML_VOLATILE_ECC,
    )
    return replace(
        facts,
        uncorrected_errors=uncorrected or 0,
        is_remap_pending=bool(rows and rows[2]),
        has_remap_failed=bool(rows and rows[3]),
    )


def _with_readings(facts: DeviceFacts, handle: Handle) -> DeviceFacts:
    """Return the facts with what the sensors of a whole GPU say; a MIG device has none."""
    use = _maybe(nvml.nvmlDeviceGetUtilizationRates, handle)
    sensor = nvml.NVML_TEMPERATURE_GPU
    temperature = _maybe(nvml.nvmlDeviceGetTemperatureV, handle, sensor)
    if temperature is None:  # before 570
        temperature = _maybe(nvml.nvmlDeviceGetTemperature, handle, sensor)
    return replace(
        facts,
        utilization=use.gpu if use else None,
        power_limit=_thousandth(_maybe(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        power=_thousandth(_maybe(nvml.nvmlDeviceGetPowerUsage, handle)),
        energy=_thousandth(_maybe(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)),
        temperature=temperature,
        sm_clock=_maybe(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory_clock=_maybe(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
    )


def _link(one: Handle, other: Handle) -> str:
    p2p = _maybe(nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    if p2p == nvml.NVML_P2P_STATUS_OK:
        return "nvlink"
    ancestor = _maybe(nvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
    return _ANCESTORS.get(ancestor, "system")


def _maybe(ask: Callable[..., T], *arguments: Any) -> T | None:
    """Return the answer, None where this device or this driver has none.

    Raises:
        NVMLError: the device or the driver as a whole fails.
    """
    try:
        return ask(*arguments)
    except nvml.NVMLError as problem:
        if problem.value in _DEVICE_FAILS or problem.value in _DRIVER_FAILS:
            raise
        return None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _bits(words: Any) -> Iterator[int]:
    for place, word in enumerate(words or ()):
        yield from (64 * place + bit for bit in range(64) if word >> bit & 1)


def _address(handle: Handle) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _loaded_library() -> tuple[str, tuple[int, ...] | None] | None:
    """Return the path of the library that this process has loaded, and what is there now."""
    found = _LIBRARY.search(Path("/proc/self/maps").read_bytes())
    if found is None:
        return None
    path = os.fsdecode(found[0])
    return path, _identity(path)


def _identity(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
