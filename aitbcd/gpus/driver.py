"""What there is of NVIDIA on this machine before NVML is asked: library, hardware, kernel module.

Looks only: without the library no probe is started, so that a machine without GPUs pays nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

NAME = "libnvidia-ml.so.1"
#: What dlopen(3) reads beside LD_LIBRARY_PATH; ldconfig(8) replaces it when a driver is installed.
CACHE = Path("/etc/ld.so.cache")
_CACHED = re.compile(rb"(/[^\0]*/libnvidia-ml\.so\.1)\0")
_DEFAULT_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
_NVIDIA, _DISPLAY_CLASS = "0x10de", "0x03"


def library(environ: Mapping[str, str]) -> Path | None:
    """Return where the loader finds NVML; None when it does not."""
    return next((path for path in _candidates(environ) if path.exists()), None)


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    for folder in environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder:
            yield Path(folder, NAME)
    try:
        cached = CACHE.read_bytes()
    except OSError:
        cached = b""
    yield from (Path(os.fsdecode(found[1])) for found in _CACHED.finditer(cached))
    yield from (Path(folder, NAME) for folder in _DEFAULT_FOLDERS)


def library_version(path: Path) -> str | None:
    """Return the driver version that a library belongs to, as its file name says."""
    _, _, version = os.path.basename(os.path.realpath(path)).partition(".so.")
    return version if "." in version else None


def module_version() -> str | None:
    """Return the version of the kernel module that is loaded; None when none is."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def hardware() -> list[str]:
    """Return the PCI addresses of NVIDIA's GPUs."""
    try:
        devices = sorted(Path("/sys/bus/pci/devices").iterdir())
    except OSError:
        return []
    return [device.name for device in devices if _is_gpu(device)]


def _is_gpu(device: Path) -> bool:
    try:
        vendor = (device / "vendor").read_text().strip()
        return vendor == _NVIDIA and (device / "class").read_text().startswith(_DISPLAY_CLASS)
    except OSError:
        return False
