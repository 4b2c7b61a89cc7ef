"""What this machine is: its usable cores, memory, name and boot. Reads /proc, starts nothing.

GPUs are not found here. ``usable`` cores are those that this process may run on (sched_getaffinity
(2), so a cpuset or taskset counts), within the quota of its cgroup (cgroup v2, ``cpu.max``).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from aitbcd.model import ID_ALPHABET, ID_LENGTH, Machine

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_CGROUPS = Path("/sys/fs/cgroup")


def look() -> Machine:
    """Return this machine as it is now."""
    return Machine(
        cpus=usable_cpus(),
        memory=usable_memory(),
        miner_id=miner_id(machine_secret()),
        boot_id=BOOT_ID.read_text().strip(),
    )


def usable_cpus() -> int:
    """Return the cores that this process can keep busy, at least 1."""
    cores = len(os.sched_getaffinity(0))
    quotas = [quota for quota in map(_cpu_quota, _own_cgroups()) if quota is not None]
    return max(1, min([cores, *(int(quota) for quota in quotas)]))


def usable_memory() -> int:
    """Return bytes: the machine's memory, or less where a cgroup allows less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit in map(_memory_limit, _own_cgroups()) if limit is not None]
    return min([total, *limits])


def machine_secret() -> bytes:
    """Return what tells this machine from others; machine-id(5) asks never to show it as it is."""
    for path in _MACHINE_IDS:
        try:
            if text := path.read_bytes().strip():
                return text
        except OSError:
            continue
    # Containers often have no machine id: the host's name is the next best thing that stays.
    return os.uname().nodename.encode()


def miner_id(secret: bytes) -> str:
    """Return ``miner_`` and eight characters derived from ``secret`` one way."""
    number = int.from_bytes(hashlib.sha256(b"aitbcd miner " + secret).digest()[:5], "big")
    letters = [ID_ALPHABET[number >> (5 * place) & 31] for place in range(ID_LENGTH)]
    return "miner_" + "".join(letters)


def _own_cgroups() -> list[Path]:
    """Return the folders of our cgroup and its parents; empty without cgroup v2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        if line.startswith("0::/"):
            own = _CGROUPS / line[len("0::/") :]
            return [own, *(folder for folder in own.parents if folder.is_relative_to(_CGROUPS))]
    return []


def _cpu_quota(cgroup: Path) -> float | None:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota.isdigit() or not period.strip().isdigit():
        return None
    return int(quota) / int(period)


def _memory_limit(cgroup: Path) -> int | None:
    limit = _read(cgroup / "memory.max").strip()
    return int(limit) if limit.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
