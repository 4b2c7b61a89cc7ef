"""Become a user: whose rights a job has, and how to do something in that user's name.

A root launcher and its supervisors keep their own ids; whatever happens in a place that a user
controls happens in a child that has become the user (credentials(7)), with a deadline, because
the user can stop that child or mount something that never answers.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

#: The largest uid or gid. The next one is -1 to the kernel: "leave it as it is" (setresuid(2)).
_LAST_ID = (1 << 32) - 2


class Identity(NamedTuple):
    uid: int
    gid: int
    name: str

    def become(self, *, in_reserve: int | None = None) -> None:
        """Take on the user's groups and ids for good. Only in a child of a root process.

        Args:
            in_reserve: the saved group, which it can go back to (credentials(7)); for nothing that
                runs a program of the user's.

        Raises:
            OSError: we are still somebody else, if only in part: do nothing more.
        """
        uid, gid = self.uid, self.gid
        if not (is_id(uid) and is_id(gid)) or uid == 0:
            raise PermissionError(errno.EPERM, f"nobody can become uid {uid!r} with gid {gid!r}")
        gids = gid, gid, gid if in_reserve is None else in_reserve
        os.initgroups(self.name, gid)
        os.setresgid(*gids)
        os.setresuid(uid, uid, uid)
        # initgroups(3) has put his own group among them.
        is_he = os.getresuid() == (uid, uid, uid) and os.getresgid() == gids
        if not is_he or gid not in os.getgroups():
            raise PermissionError(errno.EPERM, f"not all ids are now uid {uid} and gid {gid}")


def is_id(number: object) -> TypeGuard[int]:
    """Tell whether this can be a uid or a gid; True and 1000.0 are none."""
    return type(number) is int and 0 <= number <= _LAST_ID


def of_spec(spec: dict[str, Any]) -> Identity | None:
    """Return whom to become for a spec or an order, or None when we are that user already."""
    if spec["uid"] == os.getuid():
        return None
    return Identity(spec["uid"], spec["gid"], spec["user"])


def do_as(
    who: Identity | None,
    action: Callable[[], dict[str, Any]],
    deadline_s: float,
    *,
    in_reserve: int | None = None,
) -> dict[str, Any]:
    """Run ``action`` as this user and return its answer (it must be JSON).

    Args:
        in_reserve: as for ``Identity.become``.

    Raises:
        OSError: what the action raised; ETIMEDOUT past the deadline (its process is killed);
            EOWNERDEAD when its user ended it; EBADMSG for anything that is no OSError.
    """
    if who is None:
        try:
            return action()
        except OSError:
            raise
        except Exception as error:
            raise _unexpected(error) from error
    return in_child(who, action, deadline_s, in_reserve=in_reserve)


def in_child(
    who: Identity | None,
    action: Callable[[], dict[str, Any]],
    deadline_s: float,
    *,
    in_reserve: int | None = None,
) -> dict[str, Any]:
    """Do the same in a child in any case, as ourselves where ``who`` is None."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _answer(writing, who, action, in_reserve)
    os.close(writing)
    try:
        data, is_whole = _read_all(reading, deadline_s)
    finally:
        os.close(reading)
    if not is_whole:
        # What hangs in the kernel cannot be waited for; it is reaped when it is some day gone.
        os.kill(pid, signal.SIGKILL)
        raise OSError(errno.ETIMEDOUT, "the user's files did not answer in time")
    os.waitpid(pid, 0)
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError:
        # Its user can end it.
        raise OSError(errno.EOWNERDEAD, "its process was ended from outside") from None
    if "errno" in answer:
        raise OSError(answer["errno"], answer["error"])
    return answer


def _answer(
    writing: int,
    who: Identity | None,
    action: Callable[[], dict[str, Any]],
    in_reserve: int | None,
) -> None:
    """The child's whole life."""
    try:
        signal.set_wakeup_fd(-1)
        if who is not None:
            who.become(in_reserve=in_reserve)
        answer = action()
    except OSError as error:
        # Without the number, which the error that is made of this adds again.
        words = f"{error.strerror}: {error.filename!r}" if error.filename else error.strerror
        answer = {"errno": error.errno or errno.EIO, "error": words}
    except BaseException as error:
        answer = {"errno": errno.EBADMSG, "error": _unexpected(error).strerror}
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(writing, data) :]
    os._exit(0)


def _unexpected(error: BaseException) -> OSError:
    """Return a bug of ours, or what a user made of his own files, as something callers catch."""
    return OSError(errno.EBADMSG, f"{type(error).__name__}: {error}")


def _read_all(fd: int, deadline_s: float) -> tuple[bytes, bool]:
    """Return what came, and whether its end was seen."""
    data = bytearray()
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    until = time.monotonic() + deadline_s
    while (left := until - time.monotonic()) > 0 and poller.poll(left * 1000):
        piece = os.read(fd, 65536)
        if not piece:
            return bytes(data), True
        data += piece
    return bytes(data), False
