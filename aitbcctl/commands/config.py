"""``aitbcctl config``: is the daemon's configuration right?"""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from aitbcctl import custody, options
from aitbcctl.render import plain
from aitbcctl.terminal import put, put_json, say
from aitbcd import certificate, paths, settings
from aitbcd.settings import Settings


@click.group("config")
def command() -> None:
    """Check the daemon's configuration.

    \b
    Example:
      aitbcctl config check
    """


@command.command("check")
@click.argument("file", required=False, metavar="[FILE]")
@options.json_option("Print what was read and what is odd.")
def check(file: str | None, as_json: bool) -> int:
    """Say what is wrong with the configuration, with line and key.

    The exit code is 2 if anything is. Without FILE, that of your own daemon is meant where there is
    one, else the system's. None is needed.

    \b
    Example:
      aitbcctl config check /etc/aitbcd/aitbcd.toml
    """
    path = Path(file) if file is not None else _in_use()
    if path is None:
        _say_there_is_none(as_json)
        return 0
    read = settings.load(path, is_named=True)
    if refusal := custody.refusal(path):
        raise refusal
    odd = [*_odd(read, path), *_doubts(read)]
    if as_json:
        put_json({"file": str(path), "warnings": odd})
        return 0
    for line in odd:
        say(f"{plain(str(path))}: {plain(line)}")
    put(f"{plain(str(path))} is right")
    return 0


def _in_use() -> Path | None:
    """Return the file that a daemon of this user reads, or the system's, where there is one."""
    own = paths.resolve(environ=os.environ, uid=os.getuid())
    if own.config_is_named or os.path.lexists(own.config):
        return own.config
    system = Path(paths.SYSTEM_CONFIG)
    return system if os.path.lexists(system) else None


def _say_there_is_none(as_json: bool) -> None:
    if as_json:
        put_json({"file": None, "warnings": []})
        return
    own = paths.resolve(environ=os.environ, uid=os.getuid()).config
    put(f"there is no configuration, so all is as it comes; {plain(str(own))} would be read")


def _odd(read: Settings, path: Path) -> Iterator[str]:
    """Yield what may be meant and is more often a mistake."""
    for name in read.users:
        if not _is_known(pwd.getpwnam, name):
            yield f"[users.{name}]: this machine has no such user"
    for name in read.groups:
        if not _is_known(grp.getgrnam, name):
            yield f"[groups.{name}]: this machine has no such group"
    status = path.stat()
    if read.launcher != settings.Launcher() and (status.st_uid != 0 or status.st_mode & 0o022):
        yield "[launcher] counts only in a file that nobody but root can write"


def _doubts(read: Settings) -> Iterator[str]:
    """Yield what is odd with the certificate; a wrong one is refused."""
    if read.server.certificate_files:
        found = certificate.load(*read.server.certificate_files)
        yield from (f"tls_cert in [server]: {doubt}" for doubt in found.doubts(time.time()))


def _is_known(look_up: Callable[[str], object], name: str) -> bool:
    try:
        look_up(name)
    except KeyError:
        return False
    return True
