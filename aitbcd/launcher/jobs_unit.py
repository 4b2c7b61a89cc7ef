"""What ``aitbcd-jobs.service`` does: it is the delegated cgroup that all jobs live in.

systemd removes an empty cgroup, so a sleep(1) holds it. When the unit stops, or that process is
killed, that is the end of all jobs: supervisors are asked to end theirs in order (SIGTERM, grace,
SIGKILL, and the facts on disk). systemd then kills what is left, and after TimeoutStopSec= in any
case.
"""

from __future__ import annotations

import os
import select
import signal
import sys

from aitbcd.launcher import cgroups, processes
from aitbcd.launcher.linux import notify

#: Between two looks at what is still running.
_PAUSE_S = 0.1


def start() -> int:
    """Hold the cgroup; return only when that cannot be."""
    try:
        units = cgroups.units()
        for unit in units:
            cgroups.make(f"{unit}/{cgroups.SUPERVISORS}")
        cgroups.enter(*(f"{unit}/{cgroups.HOLDER}" for unit in units))
    except OSError as error:
        print(f"aitbcd launcher: no cgroup for jobs: {error}", file=sys.stderr)
        return 1
    if not units:
        print(f"aitbcd launcher: this is not within {cgroups.UNIT}", file=sys.stderr)
        return 1
    notify("READY=1\nSTATUS=holds the cgroup of all jobs")
    os.execvp("sleep", ["sleep", "infinity"])


def stop() -> int:
    """Have supervisors end their jobs; return when none of them has a process left."""
    folders = [f"{unit}/{cgroups.SUPERVISORS}" for unit in cgroups.units()]
    told: set[tuple[int, int]] = set()
    while True:
        supervisors = _supervisors(folders)
        for each in supervisors:
            if each.identity not in told:
                told.add(each.identity)
                processes.send_signal(each, signal.SIGTERM)
        if not any(processes.descendants(each.pid) for each in supervisors):
            return 0
        select.select([], [], [], _PAUSE_S)


def _supervisors(folders: list[str]) -> list[processes.Process]:
    """Return those whose parent is outside: what a job leaves, its supervisor adopts."""
    inside = {pid for folder in folders for pid in cgroups.members(folder)}
    return [
        each for each in processes.all_processes() if each.pid in inside and each.ppid not in inside
    ]
