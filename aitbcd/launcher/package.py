"""The result package while it is built: ``results/.job_<ID>/``.

Made empty for each attempt. Where the supervisor is root the package belongs to the job's user:
everything is made below a folder that only root can enter, and given away last.
"""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

from aitbcd.launcher.identity import Identity, do_as
from aitbcd.launcher.linux import set_mode
from aitbcd.launcher.protocol import close_all, gone_name, package_name

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Appending, so that two writers do not overwrite each other and a hole can be cut out behind.
_LOG = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Names of the package that are ours.
LOGS, ARTIFACTS, RESULT, PROGRESS = "logs", "artifacts", "result.txt", "progress"
STDOUT, STDERR = "stdout.log", "stderr.log"
#: Beside the logs: what the daemon saw of the job's GPUs.
SAMPLES = "gpu.csv"

#: What removing says of another user's things, of a mount point, and of a folder that holds those.
_NOT_OURS = frozenset({errno.EPERM, errno.EACCES, errno.EBUSY, errno.ENOTEMPTY, errno.EEXIST})
#: Seconds that emptying a previous attempt's package as its user may take.
_REMOVAL_S = 120.0


class Package(NamedTuple):
    stdout: int
    stderr: int

    def close(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)


def create(results_fd: int, job_id: str, who: Identity | None) -> Package:
    """Make an empty package and open its logs.

    Raises:
        OSError: the disk refused; a later attempt starts over.
    """
    name = package_name(job_id, is_sealed=False)
    try:
        os.mkdir(name, 0o700, dir_fd=results_fd)
    except FileExistsError:
        # Given away last: what is still ours was never used, and nobody else can enter it.
        is_unfinished = owner(results_fd, name) == os.getuid()
        remove(results_fd, name, None if is_unfinished else who)
        _put_away(results_fd, job_id)
        os.mkdir(name, 0o700, dir_fd=results_fd)
    top = os.open(name, DIRECTORY, dir_fd=results_fd)
    try:
        return _fill(top, who)
    finally:
        os.close(top)


def _put_away(results_fd: int, job_id: str) -> None:
    """Make way where another user left in an earlier attempt what its owner cannot remove.

    It waits for the removal of the package, which says that it is there.
    """
    name, gone = package_name(job_id, is_sealed=False), gone_name(job_id)
    target, count = gone, 0
    while True:
        try:
            os.rename(name, target, src_dir_fd=results_fd, dst_dir_fd=results_fd)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        count += 1
        target = f"{gone}/{count}"


def _fill(top: int, who: Identity | None) -> Package:
    os.mkdir(LOGS, 0o700, dir_fd=top)
    os.mkdir(ARTIFACTS, 0o700, dir_fd=top)
    opened: list[int] = []
    try:
        names = (f"{LOGS}/{STDOUT}", f"{LOGS}/{STDERR}")
        opened.extend(os.open(name, _LOG, 0o640, dir_fd=top) for name in names)
        if who is not None:
            _give_all(top, opened, who)
    except OSError:
        close_all(opened)
        raise
    return Package(*opened)


def _give_all(top: int, files: list[int], who: Identity) -> None:
    for file in files:
        os.fchown(file, who.uid, os.getgid())
    for directory in (LOGS, ARTIFACTS):
        fd = os.open(directory, DIRECTORY, dir_fd=top)
        try:
            _give(fd, who)
        finally:
            os.close(fd)
    _give(top, who)


def _give(fd: int, who: Identity) -> None:
    """Hand a directory to its user; set-gid, so that the daemon's group can read what comes."""
    os.fchmod(fd, 0o2750)
    os.fchown(fd, who.uid, os.getgid())
    # chown(2) by root keeps the set-gid bit of directories.


def owner(results_fd: int, name: str) -> int | None:
    """Return whose a package is; root gave it to him. None: there is none."""
    try:
        return os.stat(name, dir_fd=results_fd, follow_symlinks=False).st_uid
    except FileNotFoundError:
        return None


def remove(results_fd: int, name: str, who: Identity | None) -> None:
    """Remove a package: its content as its user, the emptied folder itself as us.

    What belongs to another user stays.
    """
    try:
        do_as(who, lambda: empty(results_fd, name), _REMOVAL_S)
        try_rmdir(results_fd, name)
    except FileNotFoundError:
        pass


def empty(results_fd: int, name: str) -> dict[str, Any]:
    """Remove all in a package, as its user; return ``{left}``: names of what is another's."""
    try:
        fd = os.open(name, DIRECTORY, dir_fd=results_fd)
    except PermissionError:
        fd = _open_forced(results_fd, name)
    try:
        return {"left": [os.fsdecode(each) for each in empty_directory(fd)]}
    finally:
        os.close(fd)


def open_new(name: str | bytes, mode: int, folder: int) -> int:
    """Make a file of ours; what stood there goes first, so that it leads nowhere."""
    clear(folder, name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, mode, dir_fd=folder)


def clear(folder: int, name: str | bytes) -> None:
    """Remove whatever has this name in an open folder, a folder with all that is in it."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        fd = _open_forced(folder, name)
        try:
            empty_directory(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=folder)


def empty_directory(fd: int) -> list[bytes]:
    """Remove all below an open directory, following no link, however modes were set.

    Folders are moved up before they are emptied: any depth costs one descriptor and no stack.

    Returns:
        What holds something that is not the user's to remove: a folder of another user that is
        not empty, what is mounted, what is immutable. All else is gone.
    """
    os.fchmod(fd, 0o700)
    left: set[bytes] = set()
    moved = 0
    while folders := _unlink_files(fd, left):
        for name in folders:
            try:
                moved = _move_up(fd, name, moved)
                os.rmdir(name, dir_fd=fd)
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
                if not try_rmdir(fd, name):
                    left.add(name)
    return sorted(left)


def _move_up(fd: int, name: bytes, moved: int) -> int:
    """Remove the files of a folder, move its folders beside it; as far as that is possible."""
    below = _open_forced(fd, name)
    try:
        if os.fstat(below).st_dev != os.fstat(fd).st_dev:
            # What its user has mounted there lives elsewhere, too.
            raise OSError(errno.EBUSY, "a file system is mounted there")
        left: set[bytes] = set()
        for inner in _unlink_files(below, left):
            try:
                # Only the owner of a folder that he may write can move it elsewhere.
                set_mode(inner, 0o700, below)
                moved = _move(below, inner, fd, moved)
            except PermissionError:
                # If it is not empty, this folder stays, and is told of.
                try_rmdir(below, inner)
    finally:
        os.close(below)
    return moved


def _move(source: int, name: bytes, target: int, moved: int) -> int:
    """Move a folder to the first free number after ``moved``; return that."""
    while True:
        moved += 1
        try:
            os.rename(name, b"%d" % moved, src_dir_fd=source, dst_dir_fd=target)
            return moved
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise


def try_rmdir(folder: int, name: bytes | str) -> bool:
    """Remove a folder, perhaps of another user, if it is empty; return whether it was."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        return False
    return True


def _open_forced(folder: int, name: str | bytes) -> int:
    try:
        set_mode(name, 0o700, folder)
    except PermissionError:
        # Of another user, who may have left it open to all.
        pass
    return os.open(name, DIRECTORY, dir_fd=folder)


def _unlink_files(fd: int, left: set[bytes]) -> list[bytes]:
    """Remove what is no folder; return the folders. What cannot be removed is added to ``left``."""
    with os.scandir(fd) as entries:
        found = [(os.fsencode(each.name), each.is_dir(follow_symlinks=False)) for each in entries]
    for name, is_folder in found:
        if is_folder or name in left:
            continue
        try:
            os.unlink(name, dir_fd=fd)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            left.add(name)
    return [name for name, is_folder in found if is_folder and name not in left]
