"""One attempt of a job, from its first file to the facts of its end. Knows no sockets.

Its caller calls ``reap`` when a child ends and ``tick`` when ``wake_at`` has come. The time limit
and all durations are on the monotonic clock, so that a clock that jumps ends nobody.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Any

from aitbcd.launcher import cgroups, containers, package, processes, spawn
from aitbcd.launcher import folder as run_folder
from aitbcd.launcher.identity import of_spec
from aitbcd.launcher.jobgroup import JobGroup
from aitbcd.launcher.linux import machine_oom_kills
from aitbcd.launcher.logs import LogLimit
from aitbcd.launcher.package import STDERR, STDOUT, Package
from aitbcd.launcher.protocol import Facts, folder_name

#: Between two rounds of killing what is still there: first, and at most.
_KILL_AGAIN_S, _KILL_AGAIN_MOST_S = 0.01, 0.2
#: How long after its first SIGKILL we call a process unkillable (it hangs in the kernel).
_PATIENCE_S = 15.0
#: Ticks of the clock (10 ms) within which no job has a container: docker and its three helpers
#: start one after the other. So the shortest jobs, of which there are most, look for none.
_CONTAINER_TICKS = 1
#: Children that are reaped before we look at the clock again: a job can make them faster.
_REAP_AT_ONCE = 256
#: What becoming another user adds to a child of ours, and the counters of the kernel may differ by.
_RSS_ERROR = 2 << 20
#: Characters of words kept in the facts, which must fit in their room whatever they escape to.
_WORDS = 240


def _now_us() -> int:
    return time.time_ns() // 1000


class Attempt:
    """``facts`` is None while anything of the job may run."""

    def __init__(self, spec: dict[str, Any], folder: run_folder.Folder, groups: str | None) -> None:
        """Prepare; ``groups`` is where it gets a cgroup, None for nowhere."""
        self.spec = spec
        self.folder = folder
        self.facts: Facts | None = None
        #: When the program was started, and its pid; None until its exec has succeeded.
        self.started_at: int | None = None
        self.pid: int | None = None
        self.logs: LogLimit | None = None
        self._package: Package | None = None
        self._groups = groups
        self._group: JobGroup | None = None
        self._status: int | None = None
        self._ended_by: str | None = None
        self._kill_at: float | None = None
        self._kill_pause_s = _KILL_AGAIN_S
        #: (pid, start) of what SIGKILL has not ended yet -> when it was first killed.
        self._doomed: dict[tuple[int, int], float] = {}
        self._is_killing = False
        #: More children may have ended than were reaped.
        self._has_more = False
        self._time_out_at: float | None = None
        self._started_mono = 0.0
        self._started_ticks = 0
        #: The machine's count of OOM kills when the program had run for a moment.
        self._oom_kills: int | None = None
        self._user_us = self._system_us = self._max_rss = self._least_rss = 0

    # -- start ------------------------------------------------------------------------------

    def begin(self, results_fd: int) -> None:
        """Make the package and start the program; ``facts`` says it when that failed."""
        spec, who = self.spec, of_spec(self.spec)
        try:
            made = package.create(results_fd, spec["job"], who)
            self._package = made
            run_folder.mark_started(self.folder.fd, spec)
        except OSError as error:
            self._finish(cannot_start=f"no result folder: {error.strerror}", storage=True)
            return
        if self._groups:
            name = folder_name(spec["job"], spec["attempt"])
            self._group = JobGroup.create(f"{self._groups}/{name}", spec.get("limits", {}))
        self._started_ticks = processes.ticks_now()
        # Not once it runs: on a busy machine we get the processor back later than it does.
        started_at, self._started_mono = _now_us(), time.monotonic()
        try:
            self.pid = spawn.start(spec, made.stdout, made.stderr, who, self._group)
        except spawn.CannotStart as refusal:
            self._say(f"aitbcd: {refusal}\n")
            self._finish(cannot_start=str(refusal))
            return
        except OSError as error:
            # fork(2) itself: no memory, or too many processes of this user.
            self._finish(cannot_start=f"cannot start: no new process: {error.strerror}")
            return
        # The kernel counts what a process had before its exec as its own: ours (exec_mmap() and
        # wait4(2), ru_maxrss). So what is not more than that is not known.
        self._least_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + _RSS_ERROR
        self.started_at = started_at
        now = time.monotonic()
        if spec["timeout_s"] is not None:
            self._time_out_at = now + spec["timeout_s"]
        self.logs = LogLimit({STDOUT: made.stdout, STDERR: made.stderr}, spec["log_limit"], now)

    def _say(self, text: str) -> None:
        if self._package:
            try:
                os.write(self._package.stderr, text.encode("utf-8", "replace"))
            except OSError:
                # A full disk: output.json says it too.
                pass

    # -- end --------------------------------------------------------------------------------

    def reap(self) -> None:
        """Collect the children that have ended. The main program's end ends all the rest."""
        is_alone = self._collect()
        if self.facts is not None or self._status is None:
            return
        if is_alone and not (self._group and self._group.members()):
            self._finish()
        elif self._kill_at is None:
            self._end(self.spec["grace_s"])

    def _collect(self) -> bool:
        """Reap some children; return whether there is none any more."""
        self._has_more = False
        for _ in range(_REAP_AT_ONCE):
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            self._user_us += int(usage.ru_utime * 1e6)
            self._system_us += int(usage.ru_stime * 1e6)
            self._max_rss = max(self._max_rss, usage.ru_maxrss * 1024)
            # Another process can have its pid later.
            if pid == self.pid and self._status is None:
                self._status = status
        self._has_more = True
        return False

    def end(self, why: str, grace_s: float) -> None:
        """End the whole tree: SIGTERM now, SIGKILL after the grace; asked again, maybe sooner."""
        if self.facts is not None:
            return
        if self._status is None and self._ended_by is None:
            self._ended_by = why
        self._end(grace_s)

    def _end(self, grace_s: float) -> None:
        until = time.monotonic() + grace_s
        if self._kill_at is None:
            self._kill_at = until
            if grace_s > 0:
                processes.terminate(self._with_strangers(processes.descendants(os.getpid())))
        elif not self._is_killing:
            self._kill_at = min(self._kill_at, until)
        if grace_s <= 0:
            self.tick()

    @property
    def wake_at(self) -> float | None:
        """When ``tick`` is to be called (monotonic); None: a child or a write comes first."""
        if self._has_more:
            return 0.0
        times = [self._kill_at]
        if self._kill_at is None:
            times.append(self._time_out_at)
        if self.logs:
            times.append(self.logs.look_at)
        return min((when for when in times if when is not None), default=None)

    def tick(self) -> None:
        if self._has_more:
            self.reap()
        if self.facts is not None:
            return
        now = time.monotonic()
        if self._kill_at is None and self._time_out_at is not None and now >= self._time_out_at:
            self.end("timeout", self.spec["grace_s"])
        if self._kill_at is not None and now >= self._kill_at:
            self._kill(now)
        if self.facts is None and self.logs and self.logs.look_at and now >= self.logs.look_at:
            self.look(now)

    def look(self, now: float) -> None:
        """Keep the logs within their limit, from when the program has run for a moment."""
        if self._oom_kills is None:
            # Not at the start: it would cost short jobs more than they can learn from it.
            self._oom_kills = machine_oom_kills()
        if self.logs:
            self.logs.look(now)

    def _kill(self, now: float) -> None:
        self._is_killing = True
        if self._group:
            self._group.kill()
        left = self._with_strangers(processes.end_all(self._collect))
        self._kill_at = now + self._kill_pause_s
        self._kill_pause_s = min(2 * self._kill_pause_s, _KILL_AGAIN_MOST_S)
        self._doomed = {each.identity: self._doomed.get(each.identity, now) for each in left}
        self.reap()
        undead = [each for each in left if now - self._doomed[each.identity] >= _PATIENCE_S]
        if undead and self.facts is None:
            self._finish(undead=[processes.describe(each) for each in undead])

    def _with_strangers(self, found: list[processes.Process]) -> list[processes.Process]:
        """Return these and what is in the job's cgroup without descending from us."""
        if not self._group:
            return found
        known = {each.pid for each in found}
        strangers = [pid for pid in self._group.members() if pid not in known]
        return [*found, *processes.of_pids(strangers)]

    def _finish(
        self,
        *,
        cannot_start: str | None = None,
        storage: bool = False,
        undead: list[str] | None = None,
    ) -> None:
        elapsed_us = int((time.monotonic() - self._started_mono) * 1e6)
        status = self._status
        facts: Facts = {
            "format": 1,
            "started_at": self.started_at,
            "pid": self.pid,
            "finished_at": self.started_at + elapsed_us if self.started_at else _now_us(),
            "exit_code": os.WEXITSTATUS(status)
            if status is not None and os.WIFEXITED(status)
            else None,
            "signal": os.WTERMSIG(status)
            if status is not None and os.WIFSIGNALED(status)
            else None,
            "ended_by": self._ended_by or self._ended_with_all_jobs(),
            "cannot_start": cannot_start and _shortened(cannot_start),
            "storage": storage,
            "user_us": self._user_us,
            "system_us": self._system_us,
            **(self._group.usage() if self._group else {}),
            "max_rss": self._max_rss if self._max_rss > self._least_rss else 0,
            "machine_oom_kills": self._oom_kills_since(),
            "undead": (undead or [])[:20],
            "containers": self.pid is not None
            and processes.ticks_now() - self._started_ticks > _CONTAINER_TICKS
            and containers.is_any_since(self._started_ticks, self.spec["uid"]),
            "kept_whole": self._close_files(),
        }
        if self._group:
            self._group.remove()
        self.facts = facts
        run_folder.write_exit(self.folder.fd, facts)

    def _ended_with_all_jobs(self) -> str | None:
        """Tell of a job that systemd killed with its whole unit, of which we are the next to go."""
        is_killed = self._status is not None and os.WIFSIGNALED(self._status)
        if is_killed and self._groups and not cgroups.is_held(self._groups):
            return "shutdown"
        return None

    def _oom_kills_since(self) -> int | None:
        """Return how often the OOM killer struck since the program had run for a moment."""
        if self._oom_kills is None or self._status == 0:
            return None
        now = machine_oom_kills()
        return None if now is None else max(0, now - self._oom_kills)

    def _close_files(self) -> list[str]:
        kept_whole: list[str] = []
        if self.logs:
            self.logs.punch()
            kept_whole = sorted(self.logs.kept_whole)
            self.logs.close()
            self.logs = None
        if self._package:
            self._package.close()
            self._package = None
        return kept_whole


def _shortened(words: str) -> str:
    """Return words without their middle: the system's own stand at the end of a long path."""
    half = _WORDS // 2
    return words if len(words) <= _WORDS else f"{words[:half]} ... {words[-half:]}"
