"""What is wrong with the driver or a GPU, and what to do about it, as sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aitbcd.devices import XIDS_THAT_NEED_A_RESET

# nvmlReturn_t of nvml.h; pynvml has them too, and the probe alone may import that.
NO_PERMISSION, INSUFFICIENT_POWER, DRIVER_NOT_LOADED, IRQ_ISSUE = 4, 8, 9, 11
LIBRARY_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH = 12, 15, 16, 18

_RESET = "reset it when nothing runs on it (sudo nvidia-smi --gpu-reset -i {gpu}) or reboot"


def absent(hardware: Sequence[str]) -> str:
    """Return what to say where NVML is not installed."""
    if not hardware:
        return "no NVIDIA GPU was found, so jobs run on processor cores only"
    count = f"{len(hardware)} NVIDIA GPU{'' if len(hardware) == 1 else 's'}"
    return (
        f"{count} ({', '.join(hardware[:4])}{', ...' if len(hardware) > 4 else ''}) without a"
        " driver: libnvidia-ml.so.1 is not installed. Install NVIDIA's driver (on Ubuntu: sudo"
        " ubuntu-drivers install), or, in a container, start it with the GPUs (--gpus all)"
    )


def unusable(
    code: int, text: str, *, library_version: str | None, module_version: str | None
) -> str:
    """Return what to say where NVML fails as a whole."""
    if code == DRIVER_NOT_LOADED:
        return (
            "the NVIDIA driver is installed and its kernel module is not loaded: sudo modprobe"
            " nvidia (after a new kernel: reinstall the driver so that the module is built for it)"
        )
    if code == VERSION_MISMATCH:
        library = f" ({library_version})" if library_version else ""
        module = f" ({module_version})" if module_version else ""
        return (
            f"reboot needed: the NVIDIA driver's files{library} are of another version than its"
            f" loaded kernel module{module}, as after an upgrade. New GPU programs fail until then;"
            " those that run go on"
        )
    if code == NO_PERMISSION:
        return (
            "the daemon's user may not open the NVIDIA driver: give it access to /dev/nvidiactl and"
            " /dev/nvidia* (ls -l /dev/nvidia*; often a group, sudo usermod -aG video USER), and"
            " start the daemon again"
        )
    if code == LIBRARY_NOT_FOUND:
        return (
            "the NVIDIA library libnvidia-ml.so.1 is there and cannot be loaded: reinstall the"
            " driver"
        )
    return f"the NVIDIA driver fails: {text} ({code}). See nvidia-smi and sudo dmesg"


def nothing_found(driver_version: str) -> str:
    return (
        f"the NVIDIA driver {driver_version} works and finds no GPU: see whether it is there"
        " (lspci -d 10de:) and what the kernel says of it (sudo dmesg | grep -i nvrm)"
    )


def silent(seconds: float) -> str:
    return (
        f"the NVIDIA driver has not answered for {seconds:.0f} s: see sudo dmesg | grep -i nvrm;"
        " where it says nothing helpful, a reboot is what helps. Running jobs are left alone"
    )


def awaited() -> str:
    return "the NVIDIA driver is being asked and has not answered yet"


def crashed(returncode: int) -> str:
    how = f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
    return (
        f"the program that asks the NVIDIA driver ended with {how}: the daemon's log may say more;"
        " it is started again"
    )


def unreachable(failures: Sequence[tuple[int, int]], count: int) -> str:
    """Return what to say of GPUs that are counted and do not open: their index and why."""
    which = "; ".join(f"GPU {index}: {_why_lost(code)}" for index, code in failures)
    return f"{len(failures)} of {count} GPUs cannot be used ({which}); if it stays so, reboot"


def lost(code: int) -> str:
    return f"{_why_lost(code)}; if it stays so, reboot"


def _why_lost(code: int) -> str:
    known = {
        GPU_IS_LOST: "the driver has lost it: it fell off the bus",
        INSUFFICIENT_POWER: "its power cables are not attached",
        IRQ_ISSUE: "the kernel has a problem with its interrupts",
        NO_PERMISSION: "the daemon's user may not open its device file",
        RESET_REQUIRED: "it needs a reset",
    }
    return known.get(code, f"the driver fails on it (error {code})")


def gone() -> str:
    return "the driver does not find it any more: it fell off the bus or was taken out"


def needs_reset(uuid: str) -> str:
    return f"it needs a reset: {_RESET.format(gpu=uuid)}"


def divided() -> str:
    return "MIG mode is on and nothing is set up: sudo nvidia-smi mig -cgi PROFILE -C"


def faulty(faults: Sequence[str], uuid: str) -> str:
    return f"{'; '.join(faults)}: {_RESET.format(gpu=uuid)}, then aitbcctl gpus resume {uuid}"


def fault_of_xid(xid: int) -> str | None:
    """Return the fault that an XID error is; None for one that a program alone can cause."""
    meaning = XIDS_THAT_NEED_A_RESET.get(xid)
    return f"XID {xid}, {meaning}" if meaning else None


def faults_of_memory(uncorrected: int, *, is_pending: bool, has_failed: bool) -> list[str]:
    faults = []
    if uncorrected:
        errors = f"{uncorrected} uncorrectable memory error{'' if uncorrected == 1 else 's'}"
        faults.append(f"{errors} (ECC) since the driver was loaded")
    if is_pending:
        faults.append("a memory row is to be remapped")
    if has_failed:
        faults.append("a memory row could not be remapped, so its memory is worn out")
    return faults
