"""Numbers that the kernel keeps about processes (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

KIB = 1024


def pss(pid: int) -> int:
    """Return proportional set size in bytes: shared pages count by their share."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss") * KIB


def peak_rss(pid: int) -> int:
    """Return the highest resident size since the start or the last ``forget_peak``."""
    return _field(Path(f"/proc/{pid}/status"), "VmHWM") * KIB


def rss(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/status"), "VmRSS") * KIB


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def switches(pid: int) -> int:
    """Return how often the threads of a process were switched to, all together."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        status = Path(f"/proc/{pid}/task/{task}/status")
        total += _field(status, "voluntary_ctxt_switches")
        total += _field(status, "nonvoluntary_ctxt_switches")
    return total


def cpu_seconds(pid: int) -> float:
    """Return processor time of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parent(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/status"), "PPid")


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"{path} has no {name}")
