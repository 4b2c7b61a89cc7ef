"""The result package while it is built: ``results/.job_<ID>/``.

Made empty for each attempt, or kept ready for the next one in its run folder: making inodes is what
a short job would wait for longest. Where the supervisor is root the package belongs to the job's
user: everything is made below a folder that only root can enter, and given away last.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Any, NamedTuple

from aitbcd.launcher.identity import Identity, do_as
from aitbcd.launcher.linux import set_mode
from aitbcd.launcher.protocol import gone_name, package_name

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Appending, so that two writers do not overwrite each other and a hole can be cut out behind.
_LOG = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Names of the package that are ours.
LOGS, ARTIFACTS, RESULT, PROGRESS = "logs", "artifacts", "result.txt", "progress"
STDOUT, STDERR = "stdout.log", "stderr.log"
_ALL = ("", LOGS, ARTIFACTS, f"{LOGS}/{STDOUT}", f"{LOGS}/{STDERR}")
#: What a package that is kept ready is called in its run folder.
_READY = "package"
#: Beside the logs: what the daemon saw of the job's GPUs.
SAMPLES = "gpu.csv"

#: What making a folder says where something lies, and renaming one where it cannot be replaced.
_IS_THERE = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})
#: What removing says of another user's things, of a mount point, and of a folder that holds those.
_NOT_OURS = frozenset({errno.EPERM, errno.EACCES, errno.EBUSY, errno.ENOTEMPTY, errno.EEXIST})
#: How often a folder of ours is emptied that somebody else empties or fills meanwhile.
_DISCARD_TRIES = 10
#: What a new file has of its directory beside its group: an access list and a security label.
_LABELS = ("system.posix_acl_default", "security.selinux")
#: linux/fs.h: asks for the attributes of a file (chattr(1)), and those that a directory hands on.
_GET_ATTRIBUTES, _HANDED_ON = 0x80086601, 0x6281C4CF
#: Seconds that emptying a previous attempt's package as its user may take.
_REMOVAL_S = 120.0


class Package(NamedTuple):
    stdout: int
    stderr: int

    def close(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)


class Ready(NamedTuple):
    """An empty package that lies in a run folder until an attempt begins with it."""

    folder_fd: int
    package: Package


def prepare(folder_fd: int) -> Ready:
    """Make an empty package in a run folder, for no job yet.

    Raises:
        OSError: the disk refused; nothing is left.
    """
    try:
        return Ready(folder_fd, _build(folder_fd, _READY))
    except OSError:
        discard_ready(folder_fd)
        raise


def discard_ready(folder_fd: int) -> None:
    """Remove the package that a run folder may hold."""
    discard(folder_fd, _READY)


def is_alike(run_fd: int, results_fd: int) -> bool:
    """Tell whether what is made in the one and moved to the other is as if it was made there."""
    return _can_move(run_fd, results_fd) and _handed_on(run_fd) == _handed_on(results_fd)


def _can_move(source: int, target: int) -> bool:
    """Tell whether the two directories are on one mount, and there of one device."""
    if os.fstat(source).st_dev != os.fstat(target).st_dev:
        return False
    try:
        # Nobody can rename this: what the kernel looks at first is the mount.
        os.rename(".", ".", src_dir_fd=source, dst_dir_fd=target)
    except OSError as error:
        return error.errno != errno.EXDEV
    return False


def _handed_on(fd: int) -> tuple[object, ...]:
    """Return what a new file may have of its directory.

    Its group also where the file system is mounted with ``grpid``, which nobody can ask for.
    """
    found = os.fstat(fd)
    group = found.st_gid, found.st_mode & stat.S_ISGID
    return *group, _attributes(fd), *(_label(fd, name) for name in _LABELS)


def _attributes(fd: int) -> int:
    try:
        found = fcntl.ioctl(fd, _GET_ATTRIBUTES, bytes(8))
    except OSError:
        # A file system that has none.
        return 0
    # The kernel writes an int, whatever the number of the request says.
    (attributes,) = struct.unpack_from("I", found)
    return int(attributes) & _HANDED_ON


def _label(fd: int, name: str) -> bytes:
    try:
        return os.getxattr(fd, name)
    except OSError:
        # It has none, or its file system knows none.
        return b""


def create(
    results_fd: int, job_id: str, who: Identity | None, ready: Ready | None = None
) -> Package:
    """Make a job's empty package and open its logs; what is ready is used up.

    Raises:
        OSError: the disk refused; a later attempt starts over.
    """
    name = package_name(job_id, is_sealed=False)
    if ready is not None and _place(results_fd, name, ready):
        made = ready.package
    else:
        made = _make(results_fd, job_id, who)
    if who is not None:
        try:
            _give_all(results_fd, name, made, who)
        except OSError:
            made.close()
            raise
    return made


def _place(results_fd: int, name: str, ready: Ready) -> bool:
    """Move it to where it belongs; where that cannot be, it is as if there was none."""
    try:
        for each in _ALL:
            # When the supervisor last had nothing to do is no time of the job's.
            os.utime(f"{_READY}/{each}", dir_fd=ready.folder_fd)
        os.rename(_READY, name, src_dir_fd=ready.folder_fd, dst_dir_fd=results_fd)
    except OSError:
        ready.package.close()
        discard_ready(ready.folder_fd)
        return False
    return True


def _make(results_fd: int, job_id: str, who: Identity | None) -> Package:
    name = package_name(job_id, is_sealed=False)
    try:
        return _build(results_fd, name)
    except FileExistsError:
        # Given away last: what is still ours was never used, and nobody else can enter it.
        is_unfinished = owner(results_fd, name) == os.getuid()
        remove(results_fd, name, None if is_unfinished else who)
        _put_away(results_fd, job_id)
    return _build(results_fd, name)


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
            if error.errno not in _IS_THERE:
                raise
        count += 1
        target = f"{gone}/{count}"


def _build(folder: int, name: str) -> Package:
    os.mkdir(name, 0o700, dir_fd=folder)
    os.mkdir(f"{name}/{LOGS}", 0o700, dir_fd=folder)
    os.mkdir(f"{name}/{ARTIFACTS}", 0o700, dir_fd=folder)
    stdout = os.open(f"{name}/{LOGS}/{STDOUT}", _LOG, 0o640, dir_fd=folder)
    try:
        stderr = os.open(f"{name}/{LOGS}/{STDERR}", _LOG, 0o640, dir_fd=folder)
    except OSError:
        os.close(stdout)
        raise
    return Package(stdout, stderr)


def _give_all(results_fd: int, name: str, package: Package, who: Identity) -> None:
    os.fchown(package.stdout, who.uid, os.getgid())
    os.fchown(package.stderr, who.uid, os.getgid())
    for directory in (f"{name}/{LOGS}", f"{name}/{ARTIFACTS}", name):
        fd = os.open(directory, DIRECTORY, dir_fd=results_fd)
        try:
            _give(fd, who)
        finally:
            os.close(fd)


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


def discard(folder: int, name: str) -> None:
    """Remove a folder of ours and all that is in it, if it is there.

    A supervisor that has just lost its launcher may be removing it too, or still making something
    in it. What is there at last, the next launcher clears.
    """
    for _ in range(_DISCARD_TRIES):
        try:
            fd = os.open(name, DIRECTORY, dir_fd=folder)
        except FileNotFoundError:
            return
        try:
            empty_directory(fd)
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
        finally:
            os.close(fd)


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
            if error.errno not in _IS_THERE:
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
