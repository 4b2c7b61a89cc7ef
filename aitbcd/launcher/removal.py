"""Remove a package as its owner: lock, rename out of sight, empty, remove.

A crash at any point leaves ``job_<ID>`` or ``.gone_job_<ID>``, and asking again goes on from
there. Whoever reads a package that must not vanish holds a read lock (flock(2), LOCK_SH) on its
folder. The tree is its user's: it is walked as that user, with the least claim on processor and
disk; what is done as root are a lock, a rename and an rmdir in ``results/`` itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from aitbcd.launcher import package
from aitbcd.launcher.identity import Identity, do_as
from aitbcd.launcher.linux import be_idle, set_mode
from aitbcd.launcher.protocol import Message, gone_name, left_name, package_name

#: Seconds that emptying may take, and that opening the folder may: its user can mount something
#: on it that never answers.
_DEADLINE_S, _OPEN_S = 6 * 3600.0, 60


def remove_package(results_fd: int, job_id: str, who: Identity | None) -> Message:
    """Remove a package, sealed or left unsealed by an attempt that nobody comes back to.

    Only in a process of its own: it takes time, and becomes idle.

    Returns:
        ``removed``, also where there was none; ``left`` names what had been set apart before it
        was sealed and is not its user's to remove. Or ``refused``: ``busy`` while somebody reads
        it, and nothing is changed; ``others`` when it holds what is not its user's to remove, and
        all else is gone; ``storage``.
    """
    be_idle()
    sealed, unsealed = (package_name(job_id, is_sealed=each) for each in (True, False))
    names = (gone_name(job_id), sealed, unsealed)
    try:
        # What an earlier try has left goes first: its name is wanted.
        for name in names:
            if refusal := _remove(results_fd, name, gone_name(job_id), who):
                return refusal
        left = left_name(job_id) if not _remove_left(results_fd, left_name(job_id), who) else None
        os.fsync(results_fd)
    except OSError as error:
        why = error.strerror or str(error)
        return _refused("storage", f"the results of job {job_id} cannot be removed: {why}")
    return {"op": "removed", "left": left}


def _remove_left(results_fd: int, name: str, who: Identity | None) -> bool:
    """Remove what was set apart, as far as that can be; return whether all is gone."""
    try:
        owner = os.stat(name, dir_fd=results_fd, follow_symlinks=False).st_uid
        if os.getuid() == 0 and owner != (who.uid if who else 0):
            return False
        do_as(who, lambda: package.empty(results_fd, name), _DEADLINE_S)
    except FileNotFoundError:
        return True
    return package.try_rmdir(results_fd, name)


def _remove(results_fd: int, name: str, gone: str, who: Identity | None) -> Message | None:
    """Remove one folder; return a refusal, or None when it is gone."""
    folder = -1
    signal.alarm(_OPEN_S)
    try:
        folder = _open(results_fd, name)
        owner = os.fstat(folder).st_uid
        if os.getuid() == 0 and owner != (who.uid if who else 0):
            return _refused("forbidden", f"{name} belongs to uid {owner}")
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if name != gone:
            os.rename(name, gone, src_dir_fd=results_fd, dst_dir_fd=results_fd)
        signal.alarm(0)
        return _empty(results_fd, gone, who)
    except BlockingIOError:
        return _refused("busy", f"{name} is being read just now")
    except FileNotFoundError:
        # Perhaps somebody who held the lock a moment ago has removed it.
        return None
    finally:
        signal.alarm(0)
        if folder >= 0:
            os.close(folder)


def _open(results_fd: int, name: str) -> int:
    try:
        return os.open(name, package.DIRECTORY, dir_fd=results_fd)
    except PermissionError:
        # Where we are its user, who has changed its mode.
        set_mode(name, 0o700, results_fd)
        return os.open(name, package.DIRECTORY, dir_fd=results_fd)


def _empty(results_fd: int, gone: str, who: Identity | None) -> Message | None:
    left = do_as(who, lambda: package.empty(results_fd, gone), _DEADLINE_S)["left"]
    try:
        os.rmdir(gone, dir_fd=results_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not left:
            raise
        words = "holds what belongs to another user or is mounted there; let root remove it"
        return _refused("others", f"{gone} {words}")
    return None


def _refused(why: str, error: str) -> Message:
    return {"op": "refused", "why": why, "error": error}
