"""Collect what a job asked to be kept: copy what its globs name into its package.

From the job's working directory, as its user, a component at a time, so that no link leads out of
it or into another place of the package.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import stat
from collections.abc import Callable, Iterator

from aitbcd.launcher import logs, package
from aitbcd.launcher.notes import Notes
from aitbcd.launcher.package import DIRECTORY

#: How a file of a user's is opened: a FIFO, say, is not waited for.
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Deeper folders have paths that no tool opens (PATH_MAX), and would cost a descriptor each.
MAX_DEPTH = 200
#: ioctl_ficlone(2): share the blocks where the file system can.
_FICLONE = 0x40049409


class Collector:
    """What one sealing collects with; ``cwd`` and ``target`` are open folders of its caller's."""

    def __init__(
        self,
        cwd: int,
        target: int,
        notes: Notes,
        spend: Callable[[int], None],
        temporary: bytes,
    ) -> None:
        """Prepare; ``spend`` is told of bytes before they are copied, to ``temporary`` first."""
        self._cwd = cwd
        self._target = target
        self._notes = notes
        self._spend = spend
        self._temporary = temporary

    def collect(self, glob: bytes) -> None:
        """Copy the files that a glob names; what is not copied is noted, with why."""
        parts = _split(glob)
        if glob.startswith(b"/") or b".." in parts:
            self._notes.add(glob, "leaves the working directory")
            return
        has_matched = False
        if parts:
            for path in _matches(self._cwd, parts, b"", 0):
                has_matched = True
                self._collect_file(path)
        if not has_matched:
            self._notes.add(glob, "matched nothing")

    def _collect_file(self, path: bytes) -> None:
        """Copy one file, whole or not at all; what the job itself put there stays."""
        *folders, name = path.split(b"/")
        source = into = -1
        try:
            source = _open_below(self._cwd, folders, name)
            if not stat.S_ISREG(os.fstat(source).st_mode):
                self._notes.add(path, "not a regular file")
                return
            into = _make_below(self._target, folders)
            if kind_of(into, name):
                return
            self._spend(os.fstat(source).st_size)
            copy = package.open_new(self._temporary, 0o600, into)
            try:
                copy_file(source, copy)
                os.fchmod(copy, os.fstat(source).st_mode & 0o777)
            finally:
                os.close(copy)
            os.rename(self._temporary, name, src_dir_fd=into, dst_dir_fd=into)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
                raise
            is_link = error.errno == errno.ELOOP
            why = "a symbolic link, which is not followed" if is_link else str(error.strerror)
            self._notes.add(path, why)
        finally:
            for fd in (source, into):
                if fd >= 0:
                    os.close(fd)


def copy_file(source: int, target: int) -> None:
    """Copy the content of an open file; the blocks are shared where that is possible."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        logs.copy_bytes(source, target, 0, os.fstat(source).st_size)


def _matches(fd: int, parts: list[bytes], prefix: bytes, depth: int) -> Iterator[bytes]:
    """Yield the files below an open folder that a split glob names; ``**`` is any depth.

    No symbolic link is followed. A folder that is named as a whole yields all its files.
    """
    if depth > MAX_DEPTH:
        return
    part, rest = parts[0], parts[1:]
    if part == b"**" and rest:
        yield from _matches(fd, rest, prefix, depth)
    with os.scandir(fd) as entries:
        found = [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]
    for name, is_directory in sorted(found):
        if part == b"**":
            following = parts
        elif fnmatch.fnmatchcase(name, part) and _is_meant(name, part):
            following = rest or [b"**"]
        else:
            continue
        if is_directory:
            yield from _enter(fd, name, following, prefix, depth)
        elif (part == b"**" and not rest) or (part != b"**" and not rest):
            yield prefix + name


def _split(glob: bytes) -> list[bytes]:
    parts = [part for part in glob.split(b"/") if part not in (b"", b".")]
    # "**/**" names what "**" does, but in as many ways as the tree is deep.
    return [
        each for at, each in enumerate(parts) if at == 0 or each != b"**" or parts[at - 1] != each
    ]


def _is_meant(name: bytes, part: bytes) -> bool:
    """A wildcard does not name hidden files, as in the shell."""
    return not name.startswith(b".") or part.startswith(b".")


def _enter(fd: int, name: bytes, parts: list[bytes], prefix: bytes, depth: int) -> Iterator[bytes]:
    try:
        below = os.open(name, DIRECTORY, dir_fd=fd)
    except OSError:
        return
    try:
        yield from _matches(below, parts, prefix + name + b"/", depth + 1)
    finally:
        os.close(below)


def _open_below(root: int, folders: list[bytes], name: bytes) -> int:
    fd = _descend(root, folders, make=False)
    try:
        return os.open(name, FILE, dir_fd=fd)
    finally:
        os.close(fd)


def _make_below(root: int, folders: list[bytes]) -> int:
    return _descend(root, folders, make=True)


def _descend(root: int, folders: list[bytes], *, make: bool) -> int:
    """Open a folder below ``root`` a component at a time, so that no link leads out of it."""
    fd = os.dup(root)
    for folder in folders:
        try:
            if make and not kind_of(fd, folder):
                os.mkdir(folder, 0o750, dir_fd=fd)
            below = os.open(folder, DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def kind_of(folder: int, name: bytes | str) -> int:
    """Return the S_IFMT of a name, 0 where there is nothing."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0
