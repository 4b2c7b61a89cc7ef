"""Find and signal the processes of an attempt: by descent, or by what they inherited.

Reads /proc (proc(5)). A signal goes through a pidfd whose process is still the one that was
seen (its start time), so that a reused pid is never hit.
"""

from __future__ import annotations

import os
import signal
from typing import NamedTuple


class Process(NamedTuple):
    pid: int
    ppid: int
    session: int
    #: Clock ticks since boot.
    start: int


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
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]))


def all_processes() -> list[Process]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [process for pid in pids if (process := _stat(pid))]


def descendants(root: int, *, but: frozenset[int] = frozenset()) -> list[Process]:
    """Return all that descends from ``root``, without ``but`` and what descends from those."""
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
