"""Keep a log within its limit without ever stopping who writes it.

The middle is given back to the file system (fallocate(2), FALLOC_FL_PUNCH_HOLE) while the job
writes on: the first half and the last half of the limit stay. Sealing closes the hole and says
what was dropped. Nothing here runs before a job has run for a moment, nor while it is silent.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from aitbcd.launcher.linux import ModifyWatch, punch_hole
from aitbcd.launcher.package import open_new

_watch: ModifyWatch | None = None

#: Short jobs are not looked at: at 1 GB/s this lets 100 MB pass.
FIRST_LOOK_S = 0.1
#: Between a first write and the look at it.
LOOK_S = 0.2
_BLOCK = 4096
_LEAST = 4 * _BLOCK
_NOTE_HEAD = b"\n[aitbcd: "
_NOTE_TAIL = b" bytes dropped here; this log had passed its limit]\n"
#: Names that begin so in a package are unfinished copies of ours.
TEMPORARY = ".aitbcd."


class Dropped(NamedTuple):
    """Bytes [start, end) of what was written are gone."""

    start: int
    end: int


class LogLimit:
    """Watches the open logs of one attempt. ``look_at`` is when to call ``look`` (monotonic)."""

    def __init__(self, logs: dict[str, int], limit: int, now: float) -> None:
        self._logs = logs
        self._limit = max(limit, _LEAST)
        self._punched = dict.fromkeys(logs, 0)
        self._is_watching = False
        self.look_at: float | None = now + FIRST_LOOK_S
        #: Names of logs whose file system cannot punch.
        self.kept_whole: set[str] = set()

    @property
    def fd(self) -> int | None:
        """The descriptor that is readable once somebody writes; None before the first look."""
        return _the_watch().fd if self._is_watching else None

    def on_write(self, now: float) -> None:
        _the_watch().drain()
        if self.look_at is None:
            self.look_at = now + LOOK_S

    def look(self, now: float) -> None:
        """Punch what is over the limit, and wait for the next write."""
        self.look_at = None
        try:
            for fd in self._logs.values():
                _the_watch().arm(fd)
            self._is_watching = True
        except OSError:
            # A user has 128 inotify instances by default, and whoever may not read a file may not
            # watch it: then the clock says when to look again.
            self.close()
            self.look_at = now + LOOK_S
        self.punch()

    def punch(self) -> None:
        for name, fd in self._logs.items():
            self._punch(name, fd)

    def _punch(self, name: str, fd: int) -> None:
        size = os.fstat(fd).st_size
        half = self._limit // 2
        start = _round_up(half)
        end = (size - half) // _BLOCK * _BLOCK
        if size < self._punched[name]:
            # The job has emptied it ("> /dev/stdout" does).
            self._punched[name] = 0
        done = max(self._punched[name], start)
        # In steps, so that a steady writer does not cost a system call a block.
        if size <= self._limit or end - done < min(self._limit // 8, 1 << 24):
            return
        try:
            punch_hole(fd, start, end - start)
        except OSError as error:
            # Any other (a full disk has no room to split an extent) may not be there next time.
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                self.kept_whole.add(name)
            return
        self._punched[name] = end

    def close(self) -> None:
        if self._is_watching:
            _the_watch().disarm()
            self._is_watching = False


def _the_watch() -> ModifyWatch:
    """Return this process's only watch; a supervisor has one attempt at a time."""
    global _watch
    if _watch is None:
        _watch = ModifyWatch()
    return _watch


def forget_watch() -> None:
    """Close a watch that was made before a fork: both would read its events."""
    global _watch
    if _watch is not None:
        os.close(_watch.fd)
        _watch = None


def _round_up(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def find_hole(fd: int, limit: int) -> Dropped | None:
    """Return the hole of a log over its limit (lseek(2), SEEK_HOLE), or None.

    A log is written by appending, so that a hole in it can only be ours.
    """
    size = os.fstat(fd).st_size
    if size <= limit:
        return None
    start = os.lseek(fd, 0, os.SEEK_HOLE)
    if start >= size:
        return None
    try:
        end = os.lseek(fd, start, os.SEEK_DATA)
    except OSError:
        end = size
    return Dropped(start, end)


def note(dropped: Dropped) -> bytes:
    """Return the line that stands where the middle was."""
    return b"%s%d%s" % (_NOTE_HEAD, dropped.end - dropped.start, _NOTE_TAIL)


def close_hole(directory_fd: int, name: str, fd: int, limit: int) -> Dropped | None:
    """Write an open log without its hole under the same name; returns what was dropped.

    Idempotent: a half-written copy is written again, and a log that was closed before a crash
    says itself what was dropped.
    """
    dropped = find_hole(fd, limit)
    if dropped is None:
        return _read_note(fd, limit)
    temporary = f"{TEMPORARY}{name}"
    copy = open_new(temporary, 0o640, directory_fd)
    try:
        copy_bytes(fd, copy, 0, dropped.start)
        os.write(copy, note(dropped))
        copy_bytes(fd, copy, dropped.end, os.fstat(fd).st_size - dropped.end)
    finally:
        os.close(copy)
    os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    return dropped


def _read_note(fd: int, limit: int) -> Dropped | None:
    """Return what the note of a closed log says, where ``LogLimit`` begins to drop."""
    start = _round_up(max(limit, _LEAST) // 2)
    text = os.pread(fd, 128, start)
    number, found, _ = text.removeprefix(_NOTE_HEAD).partition(_NOTE_TAIL)
    if not text.startswith(_NOTE_HEAD) or not found or not number.isdigit() or len(number) > 18:
        return None
    return Dropped(start, start + int(number))


def copy_bytes(source: int, target: int, start: int, length: int) -> None:
    """Copy a range to the target's position, in the kernel where it can (copy_file_range(2))."""
    can_in_kernel = True
    while length > 0:
        if can_in_kernel:
            try:
                done = os.copy_file_range(source, target, min(length, 1 << 30), start)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                can_in_kernel = False
                continue
        else:
            piece = os.pread(source, min(length, 1 << 20), start)
            done = len(piece)
            while piece:
                piece = piece[os.write(target, piece) :]
        if done == 0:
            break
        start += done
        length -= done
