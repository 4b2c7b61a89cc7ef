"""As whom a root launcher runs jobs for a daemon that is not root: its own table ``[launcher]``.

The daemon faces the network, and whoever takes it over speaks to us in its name. So what it says of
users is not believed: a uid must be one of this machine's users with that group and name, never
root unless the table says so, never the system's or the daemon's own, and to start something a
member of one of the groups. A uid without a user is ``#UID`` in no group. The table is read here,
from a file that nobody but root can write, and again when a user is checked and it has been saved
since.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import Any, NamedTuple

from aitbcd.launcher.identity import in_child, is_id

GROUPS = ("aitbc", "aitbc-admin")
#: login.defs(5): uids below belong to the system's services.
_FIRST_USER_UID = 1000
#: ``nobody`` and ``nogroup``, which give no rights.
_NOBODY = 65534
#: Done with his uid alone, and without his groups, whether or not he is still known.
_OF_UID = frozenset({"sweep", "remove_package"})
#: Seconds that the user database has for an answer, and that an answer is kept.
_ANSWER_S, _KEEP_S = 10.0, 60.0
_KEPT_MOST = 10_000


class Account(NamedTuple):
    """What the user database says of a uid; one that it does not know is ``_stranger``."""

    gid: int
    name: str
    groups: tuple[str, ...]


class _Table(NamedTuple):
    """``[launcher]`` with its defaults."""

    groups: tuple[str, ...] = GROUPS
    root: bool = False
    no_new_privs: bool = False


class _Seen(NamedTuple):
    """By what a saved file differs from the one before; a mode too changes the last."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class Refusal(Exception):
    """What was asked is not done for this user; the text says why."""


class Rules:
    def __init__(self, daemon_uid: int, path: str) -> None:
        """Read the table.

        Raises:
            OSError: the file cannot be read, or others can write it.
            ValueError: it is not what it should be; the text says where.
        """
        self._daemon_uid = daemon_uid
        self._path = path
        self._table, self._read = _load(path)
        self._known: dict[int, tuple[float, Account]] = {}

    def check(self, request: dict[str, Any]) -> None:
        """Refuse what a daemon may not ask for.

        Raises:
            Refusal: with the reason.
        """
        if self._is_saved():
            self.reload()
        uid, gid, name = request["uid"], request["gid"], request["user"]
        if not (is_id(uid) and is_id(gid)):
            raise Refusal(f"no user has uid {uid!r} and gid {gid!r}")
        if (uid, gid, name) == (0, 0, "root"):
            if not self._table.root:
                raise Refusal(
                    f"jobs do not run as root here; {self._path} says otherwise with"
                    " [launcher] root = true"
                )
            return
        if uid == 0 and (gid, name) == _stranger(0)[:2] and self._is_of_past(request["op"]):
            return
        if uid < _FIRST_USER_UID or uid in (_NOBODY, self._daemon_uid):
            raise Refusal(f"uid {uid} is no person's: jobs do not run as the system's users")
        if request["op"] in _OF_UID and (gid, name) == _stranger(uid)[:2]:
            return
        account = self._account(uid)
        if (gid, name) != account[:2]:
            # He was perhaps removed, or renamed, a moment ago.
            account = self._account_now(uid)
        if (gid, name) != account[:2]:
            raise Refusal(f"uid {uid} is not the user {name!r} with the group {gid}")
        groups = self._table.groups
        if request["op"] == "start" and not set(groups) & set(account.groups):
            raise Refusal(f"the user {name} is in none of the groups {', '.join(groups)}")

    def _is_of_past(self, op: str) -> bool:
        """Tell whether this is done for root: his results go though he may have no more jobs.

        What is left of jobs is ended while he may: then it was the daemon's word all along.
        """
        return op == "remove_package" or (op == "sweep" and self._table.root)

    def restrict(self, spec: dict[str, Any]) -> None:
        """Take from a job that may start what no job gets here, whatever its daemon says."""
        if self._table.no_new_privs:
            spec["no_new_privs"] = True

    def reload(self) -> None:
        """Read the table again; a wrong one changes nothing, and that is said."""
        # What is wrong is said once.
        self._read = _now(self._path)
        try:
            self._table, self._read = _load(self._path)
        except (OSError, ValueError) as problem:
            said = f"{self._path}: {problem.strerror}" if isinstance(problem, OSError) else problem
            print(f"aitbcd launcher: the table as it was stays: {said}", file=sys.stderr)

    def _is_saved(self) -> bool:
        """Tell whether it is another file than was read; many editors take it away for a moment."""
        now = _now(self._path)
        return now is not None and now != self._read

    def _account(self, uid: int) -> Account:
        kept = self._known.get(uid)
        if kept and kept[0] > time.monotonic():
            return kept[1]
        return self._account_now(uid)

    def _account_now(self, uid: int) -> Account:
        try:
            # In a child: a directory service may not answer, and we must.
            said = in_child(None, lambda: _look_up(uid), _ANSWER_S)
        except OSError as error:
            raise Refusal(f"the user database does not say who uid {uid} is: {error}") from None
        if len(self._known) >= _KEPT_MOST:
            self._known.clear()
        account = Account(said["gid"], said["name"], tuple(said["groups"]))
        self._known[uid] = (time.monotonic() + _KEEP_S, account)
        return account


def _stranger(uid: int) -> Account:
    return Account(_NOBODY, f"#{uid}", ())


def _look_up(uid: int) -> dict[str, Any]:
    import grp
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return _stranger(uid)._asdict()
    names = []
    for gid in os.getgrouplist(entry.pw_name, entry.pw_gid):
        try:
            names.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            pass
    return {"gid": entry.pw_gid, "name": entry.pw_name, "groups": names}


def _now(path: str) -> _Seen | None:
    try:
        return _seen(os.stat(path))
    except OSError:
        return None


def _seen(status: os.stat_result) -> _Seen:
    return _Seen(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _load(path: str) -> tuple[_Table, _Seen | None]:
    """Return the table, and which file it is of; None where there is none."""
    import tomllib

    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                words = (
                    "others than root can write it, and it says as whom jobs run:"
                    f" chown root {path} && chmod go-w {path}"
                )
                raise OSError(errno.EPERM, words, path)
            table = tomllib.loads(file.read().decode()).get("launcher", {})
    except FileNotFoundError:
        return _Table(), None
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: launcher is {table!r}: expected a table [launcher]")
    if unknown := set(table) - set(_Table._fields):
        raise ValueError(f"{path}: unknown key in [launcher]: {sorted(unknown)[0]}")
    groups = table.pop("groups", list(GROUPS))
    if not isinstance(groups, list) or not all(isinstance(each, str) for each in groups):
        raise ValueError(f"{path}: groups in [launcher] is {groups!r}: expected a list of names")
    for key, value in table.items():
        if not isinstance(value, bool):
            raise ValueError(f"{path}: {key} in [launcher] is {value!r}: expected true or false")
    return _Table(tuple(groups), **table), _seen(status)
