"""Where everything lies on disk: the state, the runtime folder, the configuration file.

Decides names only: it makes no folder and opens no file. The order is fixed, because tools outside
rely on it: what is said on the command line, the variables AITBCD_STATE_DIR, AITBCD_RUNTIME_DIR and
AITBCD_CONFIG, what systemd.exec(5) sets, and then the system's paths for root, those of the XDG
Base Directory Specification for anyone else.

Standard library only and cheap, because the command line imports it at each start to find the
daemon's socket: a dataclass or pathlib would cost it four milliseconds each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

#: sun_path of unix(7) has 108 bytes, the last of which is NUL.
SOCKET_PATH_MAX = 107
SOCKET_NAME = "aitbcd.sock"
SYSTEM_STATE = "/var/lib/aitbcd"
SYSTEM_RUNTIME = "/run/aitbcd"
SYSTEM_CONFIG = "/etc/aitbcd/aitbcd.toml"


class Paths(NamedTuple):
    """The places of one daemon, all absolute."""

    state: Path
    runtime: Path
    config: Path
    #: True when somebody named the configuration file, so that a missing one is an error.
    config_is_named: bool = False

    @property
    def db(self) -> Path:
        return self.state / "queue.db"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def results(self) -> Path:
        return self.state / "results"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def samples(self) -> Path:
        return self.state / "samples"

    @property
    def socket(self) -> Path:
        return self.runtime / SOCKET_NAME

    def package(self, job_id: str) -> Path:
        """Return the sealed result folder of a job."""
        return self.results / job_id

    def building(self, job_id: str) -> Path:
        """Return the result folder of a job while it is built."""
        return self.results / f".{job_id}"


def resolve(
    *,
    state: str | os.PathLike[str] | None = None,
    runtime: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str],
    uid: int,
) -> Paths:
    """Return the paths of a daemon of this user; the arguments are the command line's."""
    from pathlib import Path

    state_dir = (
        _said(state, environ, "AITBCD_STATE_DIR")
        or _of_systemd(environ, "STATE_DIRECTORY")
        or (SYSTEM_STATE if uid == 0 else _user_state(environ, uid))
    )
    runtime_dir = (
        _said(runtime, environ, "AITBCD_RUNTIME_DIR")
        or _of_systemd(environ, "RUNTIME_DIRECTORY")
        or (SYSTEM_RUNTIME if uid == 0 else _user_runtime(environ, uid, state_dir))
    )
    named = _said(config, environ, "AITBCD_CONFIG")
    folder = _of_systemd(environ, "CONFIGURATION_DIRECTORY")
    config_file = (
        named
        or (f"{folder}/aitbcd.toml" if folder else None)
        or (SYSTEM_CONFIG if uid == 0 else _user_config(environ, uid))
    )
    return Paths(Path(state_dir), Path(runtime_dir), Path(config_file), named is not None)


def client_sockets(environ: Mapping[str, str], uid: int) -> list[str]:
    """Return where a client looks for a daemon, best first; AITBC_SOCKET, when set, alone.

    The user's own come first, then the system's. A user's daemon may have been started where
    XDG_RUNTIME_DIR was set and the client where it is not (su, cron), so both places count.
    """
    if said := environ.get("AITBC_SOCKET"):
        return [os.path.abspath(said)]
    folders = []
    if runtime := environ.get("AITBCD_RUNTIME_DIR"):
        folders.append(os.path.abspath(runtime))
    if uid != 0:
        state = _said(None, environ, "AITBCD_STATE_DIR") or _user_state(environ, uid)
        own = (_user_runtime(environ, uid, state), f"/run/user/{uid}/aitbcd", f"{state}/runtime")
        folders += [folder for folder in own if not _is_anothers(folder, uid)]
    folders.append(SYSTEM_RUNTIME)
    return [f"{folder}/{SOCKET_NAME}" for folder in dict.fromkeys(folders)]


def _said(
    value: str | os.PathLike[str] | None, environ: Mapping[str, str], variable: str
) -> str | None:
    said = os.fspath(value) if value is not None else environ.get(variable)
    return os.path.abspath(said) if said else None


def _of_systemd(environ: Mapping[str, str], variable: str) -> str | None:
    # Several folders are separated by colons; the unit's first one is ours.
    return environ.get(variable, "").partition(":")[0] or None


def _user_state(environ: Mapping[str, str], uid: int) -> str:
    return f"{_xdg(environ, 'XDG_STATE_HOME') or _home(environ, uid) + '/.local/state'}/aitbcd"


def _user_config(environ: Mapping[str, str], uid: int) -> str:
    base = _xdg(environ, "XDG_CONFIG_HOME") or _home(environ, uid) + "/.config"
    return f"{base}/aitbcd/aitbcd.toml"


def _user_runtime(environ: Mapping[str, str], uid: int, state: str) -> str:
    base = _xdg(environ, "XDG_RUNTIME_DIR")
    # It vanishes at logout, and ``su`` hands on that of another user.
    if base is not None and _is_owned(base, uid):
        return f"{base}/aitbcd"
    return f"{state}/runtime"


def _is_owned(folder: str, uid: int) -> bool:
    try:
        return os.stat(folder).st_uid == uid
    except OSError:
        return False


def _is_anothers(folder: str, uid: int) -> bool:
    """Tell whether another user made it: what he would be sent is this user's environment."""
    return os.path.lexists(folder) and not _is_owned(folder, uid)


def _xdg(environ: Mapping[str, str], variable: str) -> str | None:
    # "All paths must be absolute; a relative one is invalid and is to be ignored."
    value = environ.get(variable, "")
    return value if value.startswith("/") else None


def _home(environ: Mapping[str, str], uid: int) -> str:
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return home.rstrip("/")
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/"
