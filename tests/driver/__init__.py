"""A driver to test against: ``libnvidia-ml.so.1`` built from ``nvml.c``, scripted by a text file.

The real ``pynvml`` loads it through LD_LIBRARY_PATH. What the file can say is at the head of
``nvml.c``; a test replaces it while the program under test runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
SCRIPT_VARIABLE = "AITBCD_TEST_NVML"

GIB = 1 << 30
MIB = 1 << 20
#: nvmlReturn_t.
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED = 3, 4, 9
FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH = 13, 15, 16, 18

_KINDS = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3",
        "cc": "9.0",
        "memory": 80 * GIB,
        "reserved": 600 << 20,
    },
    "a100": {
        "name": "NVIDIA A100-SXM4-40GB",
        "cc": "8.0",
        "memory": 40 * GIB,
        "reserved": 500 << 20,
    },
    "4090": {
        "name": "NVIDIA GeForce RTX 4090",
        "cc": "8.9",
        "memory": 24 * GIB,
        "reserved": 300 << 20,
    },
    "k80": {"name": "Tesla K80", "cc": "3.7", "memory": 12 * GIB, "reserved": 64 << 20},
}


def build(folder: Path) -> Path:
    """Build the library in ``folder``; return its path."""
    made = folder / LIBRARY
    options = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    name = f"-Wl,-soname,{LIBRARY}"
    command = ["gcc", *options, "-pthread", name, "-o", str(made), str(SOURCE)]
    subprocess.run(command, check=True)
    return made


def uuid_of(number: int) -> str:
    return f"GPU-{number:08x}-0000-4000-8000-{number:012x}"


def mig_uuid_of(number: int) -> str:
    return f"MIG-{number:08x}-0000-5000-8000-{number:012x}"


def gpu(number: int, kind: str = "h100", **keys: object) -> str:
    """Return the section of one GPU; ``fault__FUNCTION`` stands for ``fault.FUNCTION``.

    A value that is a list makes a line each.
    """
    plain = {
        "uuid": uuid_of(number),
        "bus": f"00000000:{number + 1:02X}:00.0",
        "minor": number,
        "utilization": 0,
        "memory_utilization": 0,
        "used": 0,
        "power": 70_000,
        "power_limit": 700_000,
        "energy": 1_000_000,
        "temperature": 30,
        "sm_clock": 345,
        "memory_clock": 2619,
    }
    return _section("gpu", plain | _KINDS[kind] | keys)


def mig(number: int, **keys: object) -> str:
    """Return the section of a MIG device of the GPU before it."""
    plain: dict[str, object] = {
        "uuid": mig_uuid_of(number),
        "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "memory": 10 * GIB,
        "used": 0,
        "gi": number,
        "ci": 0,
    }
    return _section("mig", plain | keys)


def process(pid: int, memory: int | None, kind: str = "C", utilization: int = 0) -> str:
    """Return the value of a ``process`` key."""
    return f"{kind} {pid} {'-' if memory is None else memory} {utilization}"


def _section(name: str, keys: dict[str, object]) -> str:
    return f"[{name}]\n{_lines(keys)}"


def _lines(keys: dict[str, object]) -> str:
    lines = (
        f"{key.replace('__', '.')}={one}\n"
        for key, value in keys.items()
        for one in (value if isinstance(value, list) else [value])
    )
    return "".join(lines)


@contextmanager
def program(*argv: str, **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program in a session of its own, which ends with the block, also when a test fails."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True, **how) as running:
        try:
            yield running
        finally:
            with suppress(ProcessLookupError):  # it was waited for
                os.killpg(running.pid, signal.SIGKILL)


class Driver:
    """A built library and the script that it reads."""

    def __init__(self, library: Path, script: Path) -> None:
        self.library = library
        self.script = script
        self.write()

    @property
    def environ(self) -> dict[str, str]:
        """What makes a program find this driver."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), SCRIPT_VARIABLE: str(self.script)}

    def write(self, *sections: str, **system: object) -> None:
        """Say what there is from now on, all at once."""
        new = self.script.with_name(self.script.name + ".new")
        new.write_text(_lines(system) + "".join(sections))
        os.replace(new, self.script)
