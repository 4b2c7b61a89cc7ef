"""Take a package out of a folder that holds what another user has made there.

A container that runs as root leaves folders that their package's user can neither empty, move nor
change. So the whole folder is set apart as ``.left_job_<ID>``, and its user takes out of it what
is his, by renaming, and a copy of what else he can read. What remains is another user's.
"""

from __future__ import annotations

import errno
import os
import stat

from aitbcd.launcher import logs, package
from aitbcd.launcher.linux import set_mode

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Of the disk or of us, not of one file: no reason to leave something out.
_NOT_ITS_FAULT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENOMEM})
#: Each costs a descriptor.
_MAX_DEPTH = 200


class Taker:
    """Moves what can be moved from one open folder to another, copies what can only be read.

    Doing it again completes what a crash left.
    """

    def __init__(self, temporary: bytes) -> None:
        #: The name of a copy that is not finished.
        self._temporary = temporary
        #: The paths that stay behind, and why.
        self.left: list[tuple[bytes, str]] = []

    def take_all(self, source: int, target: int, prefix: bytes = b"", depth: int = 0) -> None:
        with os.scandir(source) as entries:
            found = [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]
        for name, is_folder in sorted(found):
            try:
                if is_folder:
                    self._take_folder(source, target, prefix + name, depth)
                else:
                    self._take_file(source, target, name)
            except OSError as error:
                if error.errno in _NOT_ITS_FAULT:
                    raise
                self.left.append((prefix + name, _why(source, name, error)))

    def _take_folder(self, source: int, target: int, path: bytes, depth: int) -> None:
        if depth >= _MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, "too deep")
        name = os.path.basename(path)
        below = _open_folder(source, name)
        try:
            if os.fstat(below).st_dev != os.fstat(source).st_dev:
                raise OSError(errno.EBUSY, "a file system is mounted there")
            into = _make_folder(target, name)
            try:
                self.take_all(below, into, path + b"/", depth + 1)
            finally:
                os.close(into)
        finally:
            os.close(below)
        try:
            os.rmdir(name, dir_fd=source)
        except OSError:
            # Something stays in it, or it is in a folder of another user.
            pass

    def _take_file(self, source: int, target: int, name: bytes) -> None:
        about = os.stat(name, dir_fd=source, follow_symlinks=False)
        if about.st_uid != os.getuid():
            # One that cannot be read is of no use in the package, and safe where it is.
            os.close(_open_file(source, name))
        package.clear(target, name)
        try:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        except PermissionError:
            self._copy(source, target, name)

    def _copy(self, source: int, target: int, name: bytes) -> None:
        fd = _open_file(source, name)
        try:
            about = os.fstat(fd)
            copy = package.open_new(self._temporary, 0o600, target)
            try:
                logs.copy_bytes(fd, copy, 0, about.st_size)
                os.fchmod(copy, about.st_mode & 0o777)
            finally:
                os.close(copy)
            os.rename(self._temporary, name, src_dir_fd=target, dst_dir_fd=target)
        finally:
            os.close(fd)


def _why(folder: int, name: bytes, error: OSError) -> str:
    words = error.strerror or "it cannot be moved"
    try:
        uid = os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid
    except OSError:
        return words
    return words if uid == os.getuid() else f"belongs to another user (uid {uid}): {words}"


def _open_folder(folder: int, name: bytes) -> int:
    if os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid == os.getuid():
        set_mode(name, 0o700, folder)
    return os.open(name, package.DIRECTORY, dir_fd=folder)


def _make_folder(folder: int, name: bytes) -> int:
    try:
        fd = os.open(name, package.DIRECTORY, dir_fd=folder)
    except OSError:
        package.clear(folder, name)
        os.mkdir(name, 0o750, dir_fd=folder)
        return os.open(name, package.DIRECTORY, dir_fd=folder)
    # A sealing that was killed has perhaps made it read-only.
    os.fchmod(fd, 0o700 | (os.fstat(fd).st_mode & stat.S_ISGID))
    return fd


def _open_file(folder: int, name: bytes) -> int:
    fd = os.open(name, _FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    return fd
