"""The state directory: makes it, locks it, and refuses a place that cannot keep a queue."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from aitbcd.errors import StartupError, StateError
from aitbcd.launcher.protocol import try_lock
from aitbcd.paths import Paths

#: File systems whose locks or whose mmap SQLite's WAL mode cannot rely on
#: (https://www.sqlite.org/wal.html: "does not work over a network filesystem").
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.gcsfuse",
        "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "gpfs",
        "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "virtiofs",
    }
)  # fmt: skip


#: Below the state directory, and their modes where other users have something in them.
_FOLDERS = (("results", 0o711), ("run", 0o750))


class StateFolder:
    """Held for the daemon's life; the lock goes with its process, however that ends."""

    def __init__(self, where: Paths, *, is_separate: bool = False) -> None:
        """Say where; ``is_separate``: the launcher is another user, who makes its folders."""
        self._where = where
        self._is_separate = is_separate
        self._lock = -1

    def __enter__(self) -> Self:
        """Make the folder and take its lock.

        Raises:
            StartupError: another daemon holds it (its pid is named), or it cannot be made.
        """
        state = self._where.state
        try:
            state.mkdir(mode=0o711 if os.getuid() == 0 else 0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.open(self._where.lock, flags, 0o600)
        except OSError as problem:
            raise _unusable(state, problem) from None
        if not try_lock(self._lock):
            pid = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StartupError(
                f"another aitbcd serves {state}: pid {pid}",
                hint=f"stop it first (kill {pid}), or choose another folder with --state-dir",
                pid=pid,
            )
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            # A full disk: the lock holds all the same, only nameless.
            pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock >= 0:
            os.close(self._lock)

    def check(self) -> None:
        """Make the folders below, and refuse a place that cannot keep a queue.

        Raises:
            StartupError: it is on a network file system, or cannot be written.
        """
        state = self._where.state
        kind = file_system(state, Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
        if kind in NETWORK_FILE_SYSTEMS:
            raise StateError(
                f"the state directory {state} is on a network file system ({kind}), where SQLite"
                " and file locks cannot be relied on",
                hint="choose a folder on a local disk with --state-dir (or AITBCD_STATE_DIR)",
            )
        try:
            ours = () if self._is_separate else _FOLDERS
            for folder, mode in ((state / name, mode) for name, mode in ours):
                folder.mkdir(mode=mode if os.getuid() == 0 else 0o700, exist_ok=True)
            if not os.access(state, os.W_OK | os.X_OK) or not stat.S_ISDIR(state.stat().st_mode):
                raise PermissionError(0, "Permission denied")
        except OSError as problem:
            raise _unusable(state, problem) from None


def _unusable(state: Path, problem: OSError) -> StartupError:
    is_file = isinstance(problem, (FileExistsError, NotADirectoryError))
    why = "something on its path is no directory" if is_file else problem.strerror
    return StartupError(
        f"the state directory {state} cannot be used: {why}",
        hint="make it writable, or choose another folder with --state-dir (or AITBCD_STATE_DIR)",
    )


def file_system(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that holds ``path`` (proc_pid_mountinfo(5))."""
    resolved = os.path.realpath(path)
    best, kind = "", ""
    for line in mountinfo.splitlines():
        before, _, behind = line.partition(" - ")
        point = _unescape(before.split()[4])
        is_above = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        # The last of several mounts on one point is the one that is seen.
        if is_above and len(point) >= len(best):
            best, kind = point, behind.split()[0]
    return kind


def _unescape(text: str) -> str:
    for escaped, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escaped, char)
    return text
