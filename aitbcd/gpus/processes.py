"""Who a process is: /proc/PID, for the probe (proc_pid_stat(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

#: Longer command lines are cut; they are to be recognized, not to be run again.
COMMAND_LENGTH_MAX = 120
_ENVIRONMENT_MAX = 1 << 20
_ANCESTORS_MAX = 64
_CLAIM = re.compile(rb"(?:\A|\0)AITBC_JOB_ID=(job_[0-9a-z]{1,32})\0")
_TICKS = os.sysconf("SC_CLK_TCK")


def uid_of(pid: int) -> int | None:
    """Return whose process it is; None when there is none of this number."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def are_arguments_hidden(mountinfo: str) -> bool:
    """Tell whether users here do not see each other's arguments (hidepid of proc(5)).

    The daemon, where it is root's, sees them all the same, and must not tell.
    """
    for line in mountinfo.splitlines():
        before, _, behind = line.partition(" - ")
        if before.split()[4] == "/proc" and (found := re.search(r"hidepid=(\w+)", behind)):
            return found[1] not in ("0", "off")
    return False


def command_of(pid: int, *, is_whole: bool = True) -> str | None:
    """Return program and arguments, on one line and shortened; else the name alone."""
    line = _read(pid, "cmdline", 4096) if is_whole else b""
    words = [os.fsdecode(word) for word in line.split(b"\0") if word]
    if words:
        words[0] = os.path.basename(words[0])
        text = " ".join(" ".join(words).split())
    else:
        text = os.fsdecode(_read(pid, "comm", 64)).strip()
    text = text.encode(errors="replace").decode()
    if len(text) > COMMAND_LENGTH_MAX:
        text = text[: COMMAND_LENGTH_MAX - 1] + "\u2026"
    return text or None


def started_at(pid: int, boot_at: int) -> int | None:
    """Return when it was started, in microseconds since the epoch.

    Args:
        boot_at: see ``boot_at``.
    """
    fields = _stat(pid)
    return boot_at + int(fields[19]) * 1_000_000 // _TICKS if len(fields) > 19 else None


def _stat(pid: int) -> list[bytes]:
    """Return the fields behind the name, which stands in parentheses with any character in it."""
    return _read(pid, "stat", 4096).rpartition(b")")[2].split()


def boot_at() -> int:
    """Return when the machine was started, in microseconds since the epoch."""
    found = re.search(rb"^btime (\d+)$", Path("/proc/stat").read_bytes(), re.M)
    return int(found[1]) * 1_000_000 if found else 0


def claim_of(pid: int) -> str | None:
    """Return which job it says it is of; the daemon checks that.

    A program that sets its own title (setproctitle, as workers of vLLM and Ray do) writes it over
    its environment: then its session's leader and its ancestors are asked.
    """
    for each in _lineage(pid):
        if found := _CLAIM.search(_read(each, "environ", _ENVIRONMENT_MAX)):
            return found[1].decode()
    return None


def ancestors_of(pid: int) -> tuple[int, ...]:
    """Return what it descends from, below init, its parent first."""
    return tuple(_ancestors(pid))


def cgroups_of(pid: int) -> tuple[str, ...]:
    """Return the paths of its cgroups but for the root's, each once."""
    lines = _read(pid, "cgroup", 1 << 16).decode(errors="replace").splitlines()
    paths = dict.fromkeys(line.split(":", 2)[-1] for line in lines)
    return tuple(path for path in paths if path != "/")


def _lineage(pid: int) -> Iterator[int]:
    """Yield a process, the leader of its session, and its ancestors below init."""
    yield pid
    fields = _stat(pid)
    if len(fields) > 3:
        yield int(fields[3])
    yield from _ancestors(pid)


def _ancestors(pid: int) -> Iterator[int]:
    fields = _stat(pid)
    for _ in range(_ANCESTORS_MAX):
        pid = int(fields[1]) if len(fields) > 1 else 0
        if pid <= 1:
            return
        yield pid
        fields = _stat(pid)


def _read(pid: int, name: str, most: int) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.read(most)
    except OSError:
        return b""
