"""Find and signal the processes of an attempt: by descent, or by what they inherited.

Reads /proc (proc(5)). A signal goes through a pidfd whose process is still the one that was
seen (its start time), so that a reused pid is never hit.

Two kinds of job outrun whoever reads /proc and then kills: one that doubles, and one of which each
generation forks and exits. Against the first all that is found is stopped before any of it is
killed. The second cannot leave us: every orphan becomes our child (PR_SET_CHILD_SUBREAPER), and a
child that is not reaped keeps its pid and the number of its process group from being used again,
so both can be signalled at once, unseen. A signal to a group also reaches what one of its members
is just forking (copy_process() in the kernel), so that a whole generation cannot slip through.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

#: Rounds of stopping, each with a look through /proc, before what was found is killed.
_STOPS = 8
#: Times that our own children are killed and reaped in one round.
_STRIKES = 100
#: Of many children those that came last; the others have ended.
_NEWEST = 64


class Process(NamedTuple):
    pid: int
    ppid: int
    group: int
    session: int
    #: Clock ticks since boot.
    start: int

    @property
    def identity(self) -> tuple[int, int]:
        """What no other process has, and this one keeps when it gets another parent."""
        return self.pid, self.start


def _stat(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The command may hold anything, so count from its last parenthesis.
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] == b"X":
        return None
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def ticks_now() -> int:
    """Return the time as in ``Process.start``."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def all_processes() -> list[Process]:
    return of_pids([int(name) for name in os.listdir("/proc") if name.isdigit()])


def of_pids(pids: list[int]) -> list[Process]:
    """Return those of these that are still there."""
    return [process for pid in pids if (process := _stat(pid))]


def descendants(root: int, *, but: frozenset[int] = frozenset()) -> list[Process]:
    """Return all that descends from ``root``, without ``but`` and what descends from those.

    Each comes after its parent.
    """
    children: dict[int, list[Process]] = {}
    for process in all_processes():
        children.setdefault(process.ppid, []).append(process)
    found: list[Process] = []
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in but:
                found.append(child)
                waiting.append(child.pid)
    return found


def without(found: list[Process], those: frozenset[tuple[int, int]]) -> list[Process]:
    """Return of descendants all but these, by their identity, and what descends from them."""
    out: set[int] = set()
    for process in found:
        if process.identity in those or process.ppid in out:
            out.add(process.pid)
    return [process for process in found if process.pid not in out]


def is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return True
    return text[text.rindex(b")") + 2 : text.rindex(b")") + 3] in b"ZX"


def send_signal(process: Process, number: signal.Signals) -> None:
    """Signal this very process; silent when it is gone or not ours to signal."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        now = _stat(process.pid)
        if now is not None and now.start == process.start:
            signal.pidfd_send_signal(handle, number)
    except OSError:
        pass
    finally:
        os.close(handle)


def terminate(found: list[Process]) -> None:
    """Ask each to end. A stopped one would not hear it before it is continued."""
    for process in found:
        send_signal(process, signal.SIGTERM)
        send_signal(process, signal.SIGCONT)


def kill(found: list[Process]) -> None:
    for process in found:
        send_signal(process, signal.SIGKILL)


def end_all(collect: Callable[[], object], *, but: frozenset[int] = frozenset()) -> list[Process]:
    """Kill all that descends from us, in one round of bounded length.

    Args:
        collect: reaps our children that have ended, some of them at least.
        but: children of ours that are spared with all theirs.

    Returns:
        What is still there: it has just come up, or is not dead yet, or never will be.
    """
    found: dict[int, Process] = {}
    for _ in range(_STOPS):
        _strike_children(signal.SIGSTOP, but)
        fresh = [each for each in descendants(os.getpid(), but=but) if each.pid not in found]
        for process in fresh:
            send_signal(process, signal.SIGSTOP)
            found[process.pid] = process
        if not fresh:
            break
    kill(list(found.values()))
    for _ in range(_STRIKES):
        if not _strike_children(signal.SIGKILL, but):
            return []
        collect()
    return descendants(os.getpid(), but=but)


def _strike_children(number: signal.Signals, but: frozenset[int]) -> bool:
    """Signal our children and their groups; return whether there are any, dead ones included."""
    children = [pid for pid in own_children() if pid not in but]
    ours = os.getpgrp()
    groups: set[int] = set()
    for pid in children[: -_NEWEST - 1 : -1]:
        _send(os.kill, pid, number)
        _send(os.killpg, pid, number)
        process = _stat(pid)
        if process and process.group not in (0, ours, pid):
            groups.add(process.group)
    for group in groups:
        _send(os.killpg, group, number)
    return bool(children)


def _send(how: Callable[[int, int], None], target: int, number: int) -> None:
    try:
        how(target, number)
    except OSError:
        # No such group, or a program that has become another user.
        pass


def own_children() -> list[int]:
    """Return our children, those that have ended too, in the order in which they came to us."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(each) for each in file.read().split()]
    except FileNotFoundError:
        # A kernel without CONFIG_PROC_CHILDREN.
        return [each.pid for each in all_processes() if each.ppid == pid]


def describe(process: Process) -> str:
    """Return ``pid command`` for people."""
    try:
        with open(f"/proc/{process.pid}/comm", "rb") as file:
            command = file.read().strip().decode(errors="replace")
    except OSError:
        command = "?"
    return f"{process.pid} {command}"


def inherited(job_id: str, attempt: int, uid: int) -> list[Process]:
    """Return this user's processes that an attempt left: by its environment, and their sessions."""
    marks = (f"AITBC_JOB_ID={job_id}".encode(), f"AITBC_ATTEMPT={attempt}".encode())
    everybody = all_processes()
    mine = [process for process in everybody if _owner(process.pid) == uid]
    marked = [process for process in mine if _has_marks(process.pid, marks)]
    # Only a session that the attempt itself leads or led: its leader is marked, or gone.
    alive = {process.pid for process in everybody}
    own = {p.pid for p in marked}
    sessions = {p.session for p in marked if p.session in own or p.session not in alive}
    sessions.discard(0)
    return [process for process in mine if process.pid in own or process.session in sessions]


def _owner(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _has_marks(pid: int, marks: tuple[bytes, ...]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return False
    return all(mark in entries for mark in marks)
