"""The cgroup of one attempt: its limits, what it has used, and the end of all that is in it.

cgroup v2 (cgroups(7), the kernel's admin-guide/cgroup-v2.rst). Each file is used where it is there:
it depends on the controllers and on the kernel. Without a cgroup no limit is there but RLIMIT_NPROC
(``spawn``), and what it leaves is found by descent.

- ``memory`` is a limit, not an estimate: what needs more is killed as a whole, because a job that
  has lost a process mostly hangs with its GPUs. It does not swap: that is slower than an end.
  Nor is it slowed down before (memory.high): it has asked for all of that.
- ``shared``, for a job that has not said what it needs, is the memory that all jobs share. What it
  has beyond that is written out, and more is slow to get (memory.high); it was promised nothing.
- ``cpus`` is a weight: what others leave idle may be used.
- The cgroup is of whoever made it, so that no job of another user can leave it.
"""

from __future__ import annotations

import errno
import os
import select
import time
from typing import Any

from aitbcd.launcher.cgroups import make, members, read, write
from aitbcd.launcher.protocol import Usage

#: cpu.weight is 1 to 10000, and what has not been told has 100, like supervisors.
_WEIGHT_OF_CORE, _WEIGHT_MOST = 10, 10_000
#: What has ended may take so long to leave, where the kernel is not done with it.
_LAST_BREATH_S = 0.1


class JobGroup:
    def __init__(self, folder: str) -> None:
        """Name it; it need not be there."""
        self.folder = folder
        #: Its processes run on the cores that they were to be bound to.
        self.is_bound = False
        #: It says how many processes there may be.
        self.is_counting = False

    @classmethod
    def create(cls, folder: str, limits: dict[str, Any]) -> JobGroup | None:
        """Make it with its limits; None where that cannot be."""
        try:
            make(folder)
            # Whatever our umask is: programs read their limits there, to keep to them.
            os.chmod(folder, 0o755)
        except OSError:
            return None
        group = cls(folder)
        group._limit(limits)
        return group

    def _limit(self, limits: dict[str, Any]) -> None:
        weight = min(_WEIGHT_OF_CORE * int(limits.get("cpus", 1)), _WEIGHT_MOST)
        self._set("cpu.weight", weight)
        self._set("memory.oom.group", 1)
        if (memory := limits.get("memory")) is not None:
            self._set("memory.swap.max", 0)
            self._set("memory.max", int(memory))
        elif (shared := limits.get("shared")) is not None:
            self._set("memory.high", int(shared))
        if (processes := limits.get("processes")) is not None:
            self.is_counting = self._set("pids.max", int(processes))
        if cores := near_cores(limits):
            self.is_bound = self._set("cpuset.cpus", ",".join(map(str, cores)))

    def _set(self, name: str, value: int | str) -> bool:
        return write(f"{self.folder}/{name}", str(value))

    def members(self) -> list[int]:
        """Return its processes, also those in cgroups that they have made below it.

        What has ended is not among them. It may keep the cgroup populated for a moment.
        """
        return [pid for folder, _, _ in os.walk(self.folder) for pid in members(folder)]

    def kill(self) -> None:
        """Send SIGKILL to all that is in it; what is just forked does not slip through."""
        self._set("cgroup.kill", 1)

    def end(self, within_s: float) -> bool:
        """Kill what is in it, wait for its end, and remove it; False: something does not end."""
        self.kill()
        is_empty = self._wait_empty(time.monotonic() + within_s)
        self.remove()
        return is_empty

    def _wait_empty(self, until: float) -> bool:
        try:
            fd = os.open(f"{self.folder}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            poller = select.poll()
            poller.register(fd, select.POLLPRI)
            while b"populated 1" in os.pread(fd, 4096, 0):
                if not poller.poll(max(0, (until - time.monotonic()) * 1000)):
                    return False
        except OSError:
            # Removed meanwhile.
            pass
        finally:
            os.close(fd)
        return True

    def usage(self) -> Usage:
        """Return what it has used so far, as far as the kernel counts it."""
        used: Usage = {}
        if time_of := self._pairs("cpu.stat"):
            used["user_us"], used["system_us"] = time_of["user_usec"], time_of["system_usec"]
        if peak := read(f"{self.folder}/memory.peak"):
            used["memory_peak"] = int(peak)
        if peak := read(f"{self.folder}/pids.peak"):
            used["processes_peak"] = int(peak)
        if events := self._pairs("memory.events"):
            used["oom_kills"] = events["oom_kill"]
        if events := self._pairs("pids.events"):
            used["refused_forks"] = events["max"]
        return used

    def _pairs(self, name: str) -> dict[str, int]:
        lines = (line.split() for line in read(f"{self.folder}/{name}").splitlines())
        return {key: int(value) for key, value in lines}

    def remove(self) -> None:
        """Remove it, if nothing is in it any more."""
        if not self._remove():
            self._wait_empty(time.monotonic() + _LAST_BREATH_S)
            self._remove()

    def _remove(self) -> bool:
        is_gone = True
        for folder, _, _ in os.walk(self.folder, topdown=False):
            try:
                os.rmdir(folder)
            except OSError as error:
                is_gone = error.errno == errno.ENOENT
        return is_gone


def near_cores(limits: dict[str, Any]) -> list[int]:
    """Return the cores near to the job's GPUs; none where those are fewer than it asked for."""
    near = set(limits.get("near", ()))
    cores = near & os.sched_getaffinity(0) if near else near
    return sorted(cores) if len(cores) >= limits.get("cpus", 1) else []
