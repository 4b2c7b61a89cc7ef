"""Open what lies below a folder, and nothing else, although its owner may change it meanwhile.

Every component is opened relative to the one before with O_NOFOLLOW (openat(2)), so that no
symbolic link leads anywhere; O_NONBLOCK, so that a FIFO in the place of a file holds nobody up;
and what is no regular file, or a second name of another user's file, counts as not there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Self

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

#: Folders in folders that a walk follows; each costs it a descriptor.
DEPTH_MAX = 200


class NotThere(Exception):
    """There is no regular file (or folder) of that name below the folder."""


class OpenFile:
    """An open file or folder that a thread may be reading when somebody else closes it.

    Who has left his connection is cleaned up after at once, but a descriptor that is in use must
    not be closed: its number would be another file's by the next read.
    """

    __slots__ = ("_fd", "_is_closed", "_lock", "_users")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = Lock()
        self._users = 0
        self._is_closed = False

    @contextmanager
    def held(self) -> Iterator[int]:
        """Give the descriptor, which stays open meanwhile.

        Raises:
            NotThere: it was closed before.
        """
        with self._lock:
            if self._is_closed:
                raise NotThere(self._fd)
            self._users += 1
        try:
            yield self._fd
        finally:
            with self._lock:
                self._users -= 1
                self._close_if_unused()

    def close(self) -> None:
        """Close it once nobody reads it; calling again does nothing."""
        with self._lock:
            self._is_closed = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_closed and self._users == 0 and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def size(self) -> int:
        with self.held() as fd:
            return os.fstat(fd).st_size

    @property
    def changed_at(self) -> int:
        """When it was last written, microseconds; its user can say otherwise."""
        with self.held() as fd:
            return os.fstat(fd).st_mtime_ns // 1000

    @property
    def inode(self) -> tuple[int, int]:
        with self.held() as fd:
            about = os.fstat(fd)
            return about.st_dev, about.st_ino

    @property
    def tag(self) -> str:
        """Another text for another content, as far as the file system tells."""
        with self.held() as fd:
            about = os.fstat(fd)
            return f"{about.st_ino:x}-{about.st_size:x}-{about.st_mtime_ns:x}"

    def pread(self, length: int, offset: int) -> bytes:
        with self.held() as fd:
            return os.pread(fd, length, offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_in(package: Path | str, path: bytes) -> OpenFile:
    """Return the regular file ``path`` below ``package``.

    Raises:
        NotThere, PermissionError: as ``open_beneath``.
    """
    folder = open_folder(package)
    try:
        return OpenFile(open_beneath(folder, path))
    finally:
        os.close(folder)


def open_folder(path: Path | str) -> int:
    """Return a descriptor of a folder of ours, for the other functions.

    Raises:
        NotThere: it does not exist, or is a link.
    """
    try:
        return os.open(path, _FOLDER)
    except OSError:
        raise NotThere(os.fspath(path)) from None


def open_beneath(folder: int, path: bytes) -> int:
    """Return a descriptor of the regular file ``path`` below an open folder.

    Raises:
        NotThere: there is none, or ``path`` is not a plain relative one.
        PermissionError: it is not readable for us.
    """
    parts = path.split(b"/")
    if not all(parts) or b".." in parts or b"." in parts or b"\0" in path:
        raise NotThere(path)
    *folders, name = parts
    at = folder
    try:
        for part in folders:
            below = _open_at(at, part, _FOLDER)
            if at != folder:
                os.close(at)
            at = below
        return _open_file(at, name)
    finally:
        if at != folder:
            os.close(at)


def is_same_file(folder: int, one: bytes, other: bytes) -> bool:
    """Tell whether two paths below an open folder are names of one regular file."""
    try:
        with (
            OpenFile(open_beneath(folder, one)) as first,
            OpenFile(open_beneath(folder, other)) as second,
        ):
            return first.inode == second.inode
    except (NotThere, PermissionError):
        return False


def walk(folder: int, depth: int = 0) -> Iterator[tuple[bytes, bool]]:
    """Yield the path of everything below an open folder that is no folder, in order.

    Yields:
        Path and whether it is a regular file; and each empty folder, with a slash at its end.
    """
    with os.scandir(folder) as entries:
        found = sorted((os.fsencode(each.name), each.is_dir(follow_symlinks=False),
                        each.is_file(follow_symlinks=False)) for each in entries)  # fmt: skip
    for name, is_folder, is_file in found:
        if not is_folder or depth >= DEPTH_MAX:
            yield name, is_file
            continue
        try:
            below = _open_at(folder, name, _FOLDER)
        except (NotThere, PermissionError):
            yield name, False
            continue
        is_empty = True
        try:
            for path, is_regular in walk(below, depth + 1):
                is_empty = False
                yield name + b"/" + path, is_regular
        finally:
            os.close(below)
        if is_empty:
            yield name + b"/", False


def _open_file(folder: int, name: bytes) -> int:
    fd = _open_at(folder, name, _FILE)
    about = os.fstat(fd)
    is_file = stat.S_ISREG(about.st_mode)
    # Where fs.protected_hardlinks is off, a user can give another one's file a name of his.
    if not is_file or (about.st_nlink > 1 and about.st_uid != os.fstat(folder).st_uid):
        os.close(fd)
        raise NotThere(name)
    return fd


def _open_at(folder: int, name: bytes, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except PermissionError:
        raise
    except OSError:
        # ELOOP, ENOTDIR: a link or a file where a folder was; ENXIO: a socket; ENAMETOOLONG.
        raise NotThere(name) from None
