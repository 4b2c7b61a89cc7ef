"""The users of this machine, as its user database names them (getpwuid(3), getgrouplist(3)).

A directory service behind it may be slow, or away. So it is asked in a thread, at most for a few
seconds, and an answer is kept: for a minute as it is, and longer where there is no newer one.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar, cast

from aitbcd.errors import Unavailable

T = TypeVar("T")

_KEEP_S = 60.0
#: Somebody who is not there may have been made meanwhile.
_KEEP_NOBODY_S = 5.0
#: How long anybody waits for the database.
DEADLINE_S = 5.0
#: ``nogroup``: a group that gives no rights.
_NO_GROUP = 65534


class User(NamedTuple):
    uid: int
    gid: int
    name: str
    home: str
    shell: str


class _Answers(Generic[T]):
    """What the database said of each uid, and the questions it has not answered yet."""

    def __init__(self, read: Callable[[int], T]) -> None:
        self._read = read
        self._kept: dict[int, tuple[float, T]] = {}
        self._asked: dict[int, Future[T]] = {}

    async def get(self, uid: int) -> T:
        """Return the answer of the last minute, else a new one, else an old one.

        Raises:
            TimeoutError: there is none, and the database does not answer.
        """
        kept = self._kept.get(uid)
        if kept and kept[0] > time.monotonic():
            return kept[1]
        asked = self._asked.get(uid) or self._ask(uid)
        try:
            async with asyncio.timeout(DEADLINE_S):
                # Whoever leaves does not take the question back from others.
                return await asyncio.shield(asyncio.wrap_future(asked))
        except (TimeoutError, OSError):
            if kept is None:
                raise TimeoutError from None
        return self._keep(uid, kept[1])

    def last(self, uid: int) -> T:
        """Return the last answer, however old; ask only where there is none."""
        kept = self._kept.get(uid)
        return kept[1] if kept else self._keep(uid, self._read(uid))

    def _keep(self, uid: int, answer: T) -> T:
        keep_s = _KEEP_S if answer else _KEEP_NOBODY_S
        self._kept[uid] = (time.monotonic() + keep_s, answer)
        return answer

    def _ask(self, uid: int) -> Future[T]:
        future: Future[T] = Future()
        self._asked[uid] = future
        # A daemon thread: one that the database never answers must not hold up our end.
        thread = threading.Thread(target=self._wait, args=(uid, future), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # This user has too many processes for now, or there is no memory for one more.
            del self._asked[uid]
            future.set_exception(OSError(str(error)))
        return future

    def _wait(self, uid: int, future: Future[T]) -> None:
        answer: T | None = None
        problem: OSError | None = None
        try:
            answer = self._keep(uid, self._read(uid))
        except Exception as error:
            problem = error if isinstance(error, OSError) else OSError(str(error))
        # First: whoever asks after this answer must not get it as the answer to a newer question.
        del self._asked[uid]
        if problem is not None:
            future.set_exception(problem)
        else:
            future.set_result(cast("T", answer))


async def find(uid: int) -> User | None:
    """Return the user, or None when the database does not know this uid.

    Raises:
        Unavailable: it does not answer, and never has for this uid.
    """
    try:
        return await _users.get(uid)
    except TimeoutError:
        raise Unavailable(
            f"the user database of this machine does not say who uid {uid} is",
            hint=f"see whether it answers: getent passwd {uid}",
        ) from None


async def groups_of(uid: int) -> tuple[str, ...] | None:
    """Return the names of a user's groups; None while the database does not answer."""
    try:
        return await _groups.get(uid)
    except TimeoutError:
        return None


def lookup(uid: int) -> User | None:
    """Return what ``find`` last said; it may wait for the database only where that never was."""
    return _users.last(uid)


def stranger(uid: int) -> User:
    """Return a uid alone as a user: of no group, without a home.

    The name is no user's, so that nobody's groups come with it: that of somebody who was removed
    may be another's by now.
    """
    return User(uid, _NO_GROUP, f"#{uid}", "/nonexistent", "/bin/sh")


def base_environment(user: User) -> dict[str, str]:
    """Return what a job gets when it brings no environment of its own."""
    return {
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }


def _read_user(uid: int) -> User | None:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return None
    return User(uid, entry.pw_gid, entry.pw_name, entry.pw_dir, entry.pw_shell or "/bin/sh")


def _read_groups(uid: int) -> tuple[str, ...]:
    user = _read_user(uid)
    gids = os.getgrouplist(user.name, user.gid) if user else []
    return tuple(name for gid in gids if (name := _group_name(gid)))


def _group_name(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


_users = _Answers(_read_user)
_groups = _Answers(_read_groups)
