"""The users of this machine, as its user database names them (getpwuid(3)).

Answers are kept for a minute: a directory service may be slow, and a job start must not wait.
"""

from __future__ import annotations

import os
import pwd
import time
from typing import NamedTuple

_KEEP_S = 60.0
_kept: dict[int, tuple[float, User | None]] = {}


class User(NamedTuple):
    uid: int
    gid: int
    name: str
    home: str
    shell: str


def lookup(uid: int) -> User | None:
    """Return the user, or None when the database does not know this uid."""
    now = time.monotonic()
    until, user = _kept.get(uid, (0.0, None))
    if until < now:
        user = _read(uid)
        _kept[uid] = (now + _KEEP_S, user)
    return user


def _read(uid: int) -> User | None:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return None
    return User(uid, entry.pw_gid, entry.pw_name, entry.pw_dir, entry.pw_shell or "/bin/sh")


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
