"""Where supervisors live under systemd: the delegated cgroup of the unit that holds all jobs.

They must not stay in the launcher's own cgroup, with which systemd would end them. The unit's is
the launcher's neighbour. They are in a folder below it, and so is what holds the unit, because a
cgroup that hands controllers on may hold no process itself (cgroups(7)). Outside of systemd there
is no such neighbour, and nothing is moved.
"""

from __future__ import annotations

import os

UNIT = "aitbcd-jobs.service"
HOLDER, SUPERVISORS = "holder", "supervisors"
_PROCS = "cgroup.procs"


def own_folders() -> list[str]:
    """Return the folders of this process's cgroup, in each hierarchy that systemd keeps it in.

    That is the unified one, and on machines with cgroup v1 also the one that is named systemd.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = _mounts(file.read())
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    return [
        mounts[controllers] + path.rstrip("/")
        for _, controllers, path in lines
        if controllers in mounts
    ]


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
    return [folder[: folder.index(mark) + len(mark)] for folder in own_folders() if mark in folder]


def neighbours() -> list[str]:
    """Return where supervisors go; nothing outside of systemd."""
    units = [f"{os.path.dirname(folder)}/{UNIT}" for folder in own_folders()]
    return [f"{unit}/{SUPERVISORS}" for unit in units if os.path.isdir(unit)]


def make(folder: str) -> None:
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        pass


def enter(folders: list[str]) -> None:
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
    try:
        with open(f"{folder}/{_PROCS}", encoding="ascii") as file:
            return [int(line) for line in file]
    except OSError:
        return []
