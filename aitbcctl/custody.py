"""Whether what a daemon keeps is whole, and nobody else's to change.

Modes and owners are judged, access lists (acl(5)) are not. Nothing is changed by looking.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from aitbcctl.findings import FAIL, OK, Finding
from aitbcd import paths
from aitbcd.errors import AitbcError, SettingsError
from aitbcd.units import format_size

_DAEMON = "aitbcd"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_AT_ALL = stat.S_IRWXG | stat.S_IRWXO
#: What others could do where they can write, or read.
_SWAP_QUEUE = "others can put another queue in its place"
_SWAP_SOCKET = "others can put a socket of theirs there, and are told what was meant for the daemon"
_READ_SECRETS = "others can read the environments of jobs, with what is secret in them"
_SWAP_CONFIG = "others can change what the daemon does"


class _Place(NamedTuple):
    path: Path
    #: Bits of the mode that it must not have, and what comes of them.
    forbidden: int
    danger: str
    #: Whose it may be; the first is whose it should be.
    owners: tuple[int, ...]


def look(state: Path) -> Iterator[Finding]:
    """Yield what is found of the daemon with this state directory, as far as we may look."""
    yield from _store(state / "queue.db")
    problems = [finding for place in _places(state) for finding in _judge(place)]
    yield from problems
    if not problems:
        yield Finding("permissions", OK, f"nobody else can change {state}, or what belongs to it")


def refusal(path: Path) -> SettingsError | None:
    """Return why a launcher of root would not read this file, if it is the one that it reads."""
    if path.resolve() != Path(paths.SYSTEM_CONFIG).resolve():
        return None
    status = path.stat()
    if status.st_uid == 0 and not status.st_mode & _OTHERS_WRITE:
        return None
    return SettingsError(
        f"{path}: others than root can write it, and it says as whom jobs run, so that the launcher"
        " does not start",
        hint=f"chown root {path} && chmod go-w {path}",
        file=str(path),
    )


def _store(file: Path) -> Iterator[Finding]:
    # To others it is closed, and should be.
    if os.getuid() not in (0, *_owner_of(file)) or not file.exists():
        return
    # The one thing here that needs the daemon's own code, which is there wherever its file is.
    from aitbcd.store import migrate

    try:
        schema = migrate.look_at(file)
        size = format_size(file.stat().st_size)
    except AitbcError as error:
        yield Finding("store", FAIL, error.detail, error.hint)
    except OSError as error:
        yield Finding("store", FAIL, f"{file} cannot be read: {error.strerror}")
    else:
        yield Finding("store", OK, f"{file} can be read, schema {schema}, {size}")


def _places(state: Path) -> Iterator[_Place]:
    if state == Path(paths.SYSTEM_STATE):
        keepers = (*_uid_of(_DAEMON), 0)
        # Of the package's units the launcher is root, who keeps these.
        others = tuple(reversed(keepers))
        runtime: Path | None = Path(paths.SYSTEM_RUNTIME)
        config = Path(paths.SYSTEM_CONFIG)
        yield _Place(config.parent, _OTHERS_WRITE, _SWAP_CONFIG, (0,))
    else:
        keepers = others = tuple(_owner_of(state))
        own = paths.resolve(environ=os.environ, uid=os.getuid())
        # Of somebody else's daemon nothing says where these are.
        runtime = own.runtime if os.getuid() in keepers else None
        if runtime is not None:
            # Where each user has a group of his own it may write what is his.
            yield _Place(own.config, stat.S_IWOTH, _SWAP_CONFIG, (*keepers, 0))
    yield _Place(state, _OTHERS_WRITE, _SWAP_QUEUE, keepers)
    for name in ("queue.db", "queue.db-wal"):
        yield _Place(state / name, _OTHERS_AT_ALL, _READ_SECRETS, keepers)
    yield _Place(state / "results", _OTHERS_WRITE, "others can take results away", others)
    yield _Place(state / "run", _OTHERS_WRITE, "others can say how jobs ended", others)
    if runtime is not None:
        yield _Place(runtime, _OTHERS_WRITE, _SWAP_SOCKET, (*keepers, 0))


def _judge(place: _Place) -> Iterator[Finding]:
    path = place.path
    try:
        status = path.stat()
    except OSError:
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & place.forbidden:
        hint = f"chmod {mode & ~place.forbidden:04o} {path}"
        yield Finding("permissions", FAIL, f"{path} has mode {mode:04o}: {place.danger}", hint)
    if place.owners and status.st_uid not in place.owners:
        hint = f"chown {_name_of(place.owners[0])} {path}"
        said = f"{path} belongs to {_name_of(status.st_uid)}, who can change it"
        yield Finding("permissions", FAIL, said, hint)


def _owner_of(path: Path) -> Iterator[int]:
    try:
        yield path.stat().st_uid
    except OSError:
        return


def _uid_of(name: str) -> Iterator[int]:
    try:
        yield pwd.getpwnam(name).pw_uid
    except KeyError:
        return


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
