"""The run folder of an attempt: born locked, holds the facts of its end, removed when recorded.

Everything is relative to a descriptor of ``run/``. Who holds the write lock of ``lock`` owns the
folder; only its owner changes it. A supervisor that goes on to the next attempt keeps its folder
under a spare name, locked: making and deleting inodes is what a short job would wait for longest.
"""

from __future__ import annotations

import errno
import json
import os
from typing import NamedTuple

from aitbcd.launcher import package, protocol
from aitbcd.launcher.protocol import (
    CANCELED,
    EXIT,
    EXIT_RESERVED,
    EXIT_ROOM,
    LEFT_OUT,
    LOCK,
    SOCKET,
    STARTED,
    STARTED_RESERVED,
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: A folder under construction or spare; what a killed launcher left is cleared at the next start.
TEMPORARY = ".new."


class Folder(NamedTuple):
    """An owned folder: its directory and its held lock."""

    fd: int
    lock: int

    def close(self) -> None:
        os.close(self.lock)
        os.close(self.fd)


class Taken(Exception):
    """The name is in use: ``why`` is busy, started or canceled."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def make_apart(state_fd: int) -> None:
    """Make ``run/`` and ``results/`` ours in a state directory that another user owns.

    He reads them by his group. He could have put something else in their place: then we do not
    serve, because root must not work in what he can change.

    Raises:
        PermissionError: one of them is not ours.
    """
    gid = os.fstat(state_fd).st_gid
    for name, mode in (("run", 0o750), ("results", 0o711)):
        try:
            os.mkdir(name, 0o700, dir_fd=state_fd)
        except FileExistsError:
            pass
        fd = os.open(name, _DIRECTORY, dir_fd=state_fd)
        try:
            if os.fstat(fd).st_uid != os.getuid():
                raise PermissionError(errno.EPERM, "it belongs to another user", name)
            os.fchown(fd, -1, gid)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)


def spare_name(pid: int) -> str:
    """Return the name of the folder that a supervisor keeps between two attempts.

    By its pid, because supervisors of an earlier launcher may still be there.
    """
    return f"{TEMPORARY}{pid}"


def build(run_fd: int, temporary: str) -> Folder:
    """Make a locked folder under a temporary name, with room for the facts of an end.

    Raises:
        OSError: the disk refused; nothing is left.
    """
    try:
        os.mkdir(temporary, 0o750, dir_fd=run_fd)
    except FileExistsError:
        # Of a supervisor that had this pid before.
        discard(run_fd, temporary)
        os.mkdir(temporary, 0o750, dir_fd=run_fd)
    fd = lock = -1
    try:
        fd = os.open(temporary, _DIRECTORY, dir_fd=run_fd)
        lock = os.open(LOCK, _NEW, 0o640, dir_fd=fd)
        protocol.try_lock(lock)
        room = os.open(EXIT_RESERVED, _NEW, 0o640, dir_fd=fd)
        try:
            os.posix_fallocate(room, 0, EXIT_ROOM)
        finally:
            os.close(room)
        mark(fd, STARTED_RESERVED)
    except OSError:
        if fd >= 0:
            remove_content(fd)
            os.close(fd)
        if lock >= 0:
            os.close(lock)
        os.rmdir(temporary, dir_fd=run_fd)
        raise
    return Folder(fd, lock)


def publish(run_fd: int, temporary: str, name: str) -> None:
    """Give a built folder its name, in the place of one whose attempt never started.

    A crash leaves a temporary folder, or a folder without ``started``: both mean "never ran".

    Raises:
        Taken: see there; the temporary folder is as it was.
    """
    while True:
        try:
            os.rename(temporary, name, src_dir_fd=run_fd, dst_dir_fd=run_fd)
            return
        except OSError:
            # A folder always holds its lock file, so rename(2) never replaces one.
            if not has(run_fd, name):
                raise
        _clear_unstarted(run_fd, name)


def recycle(run_fd: int, folder: Folder, name: str, spare: str) -> None:
    """Make a folder whose end is recorded ready for the next attempt, under its spare name.

    A crash half way leaves what ``remove`` or ``clear_temporary`` removes.
    """
    os.rename(name, spare, src_dir_fd=run_fd, dst_dir_fd=run_fd)
    os.rename(EXIT, EXIT_RESERVED, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    try:
        os.rename(STARTED, STARTED_RESERVED, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    except FileNotFoundError:
        # The disk kept the attempt from starting.
        pass
    unlink(folder.fd, SOCKET)
    unlink(folder.fd, LEFT_OUT)


def _clear_unstarted(run_fd: int, name: str) -> None:
    found = take(run_fd, name)
    if found is None:
        raise Taken("busy")
    try:
        if has(found.fd, STARTED):
            raise Taken("started")
        if has(found.fd, CANCELED):
            raise Taken("canceled")
        remove_content(found.fd)
        os.rmdir(name, dir_fd=run_fd)
    finally:
        found.close()


def take(run_fd: int, name: str) -> Folder | None:
    """Take an existing folder's lock; None when somebody holds it.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    fd = os.open(name, _DIRECTORY, dir_fd=run_fd)
    try:
        lock = os.open(
            LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640, dir_fd=fd
        )
    except OSError:
        os.close(fd)
        raise
    if protocol.try_lock(lock):
        return Folder(fd, lock)
    os.close(lock)
    os.close(fd)
    return None


def is_held(run_fd: int, name: str) -> bool:
    """Tell whether somebody else has a folder's lock."""
    try:
        fd = os.open(f"{name}/{LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=run_fd)
    except FileNotFoundError:
        return False
    try:
        return protocol.is_locked(fd)
    finally:
        os.close(fd)


def has(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def mark(fd: int, name: str) -> None:
    """Create an empty file: ``started`` or ``canceled``."""
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640, dir_fd=fd))


def started_as(fd: int) -> int | None:
    """Return the uid that a root supervisor has run an attempt as; None: it never ran."""
    try:
        return os.stat(STARTED, dir_fd=fd, follow_symlinks=False).st_uid
    except FileNotFoundError:
        return None


def asked_for(fd: int, order: protocol.Message) -> protocol.Message | None:
    """Return what a root supervisor's attempt asked to be collected; None: it did not."""
    file = os.open(STARTED, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    with open(file, "rb") as found:
        text = found.read()
    try:
        said: protocol.Message = json.loads(text) if text else {}
    except ValueError:
        # As a power cut can leave it.
        said = {}
    # What an earlier attempt in this folder said is still there.
    is_its_own = all(said.get(key) == order[key] for key in ("job", "attempt"))
    return {key: said[key] for key in ("cwd", "artifacts")} if is_its_own else None


def mark_started(fd: int, spec: protocol.Message) -> None:
    """Say, before the program is spawned, that it may have run; for root also as whom.

    And what it asked to be collected, for who seals when its supervisor is gone.

    Raises:
        OSError: there is no room for that.
    """
    if os.getuid() == 0:
        # Without a byte that a full disk could refuse. Nobody but root enters ``run/``.
        os.chown(STARTED_RESERVED, spec["uid"], -1, dir_fd=fd, follow_symlinks=False)
        if spec.get("artifacts"):
            _write_asked(fd, spec)
    os.rename(STARTED_RESERVED, STARTED, src_dir_fd=fd, dst_dir_fd=fd)


def _write_asked(fd: int, spec: protocol.Message) -> None:
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(STARTED_RESERVED, flags, dir_fd=fd), "wb") as file:
        asked = {key: spec[key] for key in ("job", "attempt", "cwd", "artifacts")}
        file.write(json.dumps(asked).encode())


def write_exit(fd: int, facts: protocol.Facts) -> None:
    """Write ``exit.json`` into the room reserved for it; whole or not at all, never ENOSPC."""
    # Padded, so that the blocks stay with the file for the next attempt.
    data = json.dumps(facts).encode().ljust(EXIT_ROOM)
    room = os.open(EXIT_RESERVED, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        os.pwrite(room, data, 0)
    finally:
        os.close(room)
    os.rename(EXIT_RESERVED, EXIT, src_dir_fd=fd, dst_dir_fd=fd)


def remove(run_fd: int, folder: Folder, name: str) -> None:
    """Remove an owned folder and let go of it. The lock goes last."""
    try:
        remove_content(folder.fd)
        os.rmdir(name, dir_fd=run_fd)
    finally:
        folder.close()


def remove_content(fd: int) -> None:
    for name in (EXIT_RESERVED, EXIT, LEFT_OUT, SOCKET, CANCELED, STARTED_RESERVED, STARTED, LOCK):
        unlink(fd, name)


def unlink(fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass


def clear_temporary(run_fd: int) -> None:
    """Remove what a killed launcher had under construction or kept spare."""
    for name in os.listdir(run_fd):
        if name.startswith(TEMPORARY):
            discard(run_fd, name)


def discard(run_fd: int, name: str) -> None:
    """Remove a temporary folder and all that is in it, if it is there."""
    fd = -1
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=run_fd)
        package.empty_directory(fd)
        os.rmdir(name, dir_fd=run_fd)
    except FileNotFoundError:
        # The supervisor that kept it removes it too.
        pass
    finally:
        if fd >= 0:
            os.close(fd)
