"""Where supervisors and jobs live under systemd: the delegated cgroup of the unit of all jobs.

Supervisors must not stay in the launcher's own cgroup, with which systemd would end them. The
unit's is the launcher's neighbour. Below it are a folder for them, one for what holds the unit, and
one for each attempt (``jobgroup``), because a cgroup that hands controllers on may hold no process
itself (cgroups(7)).

Outside of that unit supervisors stay where they are. Attempts have cgroups of their own there too
if systemd has delegated ours, or the one above it, to us; else they have none.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

UNIT = "aitbcd-jobs.service"
HOLDER, SUPERVISORS = "holder", "supervisors"
#: What limits and counts jobs.
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
_PROCS = "cgroup.procs"
#: systemd's word for a cgroup that it leaves to whoever runs in it (its CGROUP_DELEGATION.md).
_DELEGATED = ("user.delegate", "trusted.delegate")


class Place(NamedTuple):
    #: Where supervisors go, in each hierarchy; nothing: they stay.
    supervisors: tuple[str, ...] = ()
    #: Where attempts get cgroups; None: they get none.
    jobs: str | None = None
    #: What those are limited and counted by.
    controllers: tuple[str, ...] = ()


def own_folders() -> dict[str, str]:
    """Return the folders of this process's cgroup, in each hierarchy that systemd keeps it in.

    That is the unified one, under the name "", and on machines with cgroup v1 also "name=systemd".
    """
    mounts = hierarchies()
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    return {
        controllers: mounts[controllers] + path.rstrip("/")
        for _, controllers, path in lines
        if controllers in mounts
    }


@functools.cache
def hierarchies() -> dict[str, str]:
    """Return where those are mounted that systemd keeps processes in; this does not change."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return _mounts(file.read())


def _mounts(mountinfo: str) -> dict[str, str]:
    """Return where hierarchies are mounted whole, by their name in proc_pid_cgroup(5)."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, behind = line.partition(" - ")
        fields, (kind, _, options) = before.split(), behind.split(" ", 2)
        if kind == "cgroup2":
            found.setdefault("", fields[4])
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            found.setdefault("name=systemd", fields[4])
    return found


def units() -> list[str]:
    """Return the folders of the jobs' unit, for a process that systemd started in it."""
    mark = f"/{UNIT}"
    folders = own_folders().values()
    return [folder[: folder.index(mark) + len(mark)] for folder in folders if mark in folder]


def find() -> Place:
    """Return where supervisors and attempts go, and let attempts have the controllers there are."""
    own = own_folders()
    units = {name: f"{os.path.dirname(folder)}/{UNIT}" for name, folder in own.items()}
    units = {name: unit for name, unit in units.items() if os.access(unit, os.W_OK)}
    jobs = units.get("") if units else _delegated(own.get(""))
    supervisors = tuple(f"{unit}/{SUPERVISORS}" for unit in units.values())
    if jobs is None or not os.access(f"{jobs}/{_PROCS}", os.W_OK):
        return Place(supervisors)
    return Place(supervisors, jobs, _enable(jobs))


def _delegated(own: str | None) -> str | None:
    """Return the cgroup that was given to us: our own, or the one above it (DelegateSubgroup=)."""
    if own is None:
        return None
    return next((each for each in (os.path.dirname(own), own) if _is_delegated(each)), None)


def _is_delegated(folder: str) -> bool:
    for name in _DELEGATED:
        try:
            if os.getxattr(folder, name) == b"1":
                return True
        except OSError:
            # It has none, or a kernel before 5.7, or one for root's eyes.
            pass
    return False


def _enable(folder: str) -> tuple[str, ...]:
    """Hand on what there is, each by itself: one that is in use elsewhere spoils no other."""
    path = f"{folder}/cgroup.subtree_control"
    for controller in CONTROLLERS:
        write(path, f"+{controller}")
    enabled = read(path).split()
    return tuple(each for each in CONTROLLERS if each in enabled)


def make(folder: str) -> None:
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        pass


def enter(*folders: str) -> None:
    """Move this process.

    Raises:
        OSError: the unit was stopped, or its cgroup is not ours to use.
    """
    for folder in folders:
        make(folder)
        with open(f"{folder}/{_PROCS}", "w", encoding="ascii") as file:
            file.write("0")


def members(folder: str) -> list[int]:
    """Return the processes that are in a cgroup, without those below it."""
    return [int(line) for line in read(f"{folder}/{_PROCS}").split()]


def is_held(unit: str) -> bool:
    """Tell whether the unit of all jobs goes on; it ends with what holds it."""
    holder = f"{unit}/{HOLDER}"
    return not os.path.isdir(holder) or bool(members(holder))


def read(path: str) -> str:
    """Return what a file of a cgroup says; nothing where there is no such file."""
    try:
        # Not as text: Python opens a file for its encoding, which fails where no more can be open.
        with open(path, "rb") as file:
            return file.read().decode()
    except OSError:
        return ""


def write(path: str, value: str) -> bool:
    """Set a file of a cgroup; False where there is no such file or the kernel will not."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, value.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
