"""The program that the units start: this very installation, and whether the system may run it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import uvloop

import aitbcd
from aitbcd.errors import CannotInstall

#: What the daemon's unit hides from it: ProtectHome= and PrivateTmp=.
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
#: Groups below are the system's: their members are administrators, by Debian's policy for staff.
_FIRST_USER_GID = 1000
_ELSEWHERE = (
    "install it where all can read it and root alone can write, in a checkout: python3 -m venv"
    " /opt/aitbcd && /opt/aitbcd/bin/pip install . && /opt/aitbcd/bin/aitbcd install"
)


def find() -> tuple[str, ...]:
    """Return the words that run this installation, from whatever directory."""
    script = sys.argv[0]
    if os.path.basename(script) == "aitbcd" and os.access(script, os.X_OK):
        return (os.path.abspath(script),)
    # Run with -m. -P: no other sources of the same name.
    return (sys.executable, "-P", "-m", "aitbcd")


def check_for_system(program: tuple[str, ...]) -> None:
    """Refuse what the daemon's user cannot read, and what others than root could change.

    Raises:
        CannotInstall: naming the file or folder.
    """
    import_from = (os.path.dirname(module.__file__ or "/") for module in (aitbcd, uvloop))
    used = (program[0], sys.executable, sys.base_prefix, *import_from)
    for path in dict.fromkeys(part for name in used for part in _walked(name)):
        hidden = next((each for each in _HIDDEN if path.is_relative_to(each)), None)
        if hidden:
            raise CannotInstall(
                f"{path} is part of this installation, and the daemon of the system sees nothing"
                f" in {hidden}",
                hint=f"{_ELSEWHERE}. For yourself alone, without root: aitbcd install --user",
            )
        _check_part(path)


def _walked(path: str) -> Iterator[Path]:
    """Yield the folders that the kernel walks through, over links too, and what is at the end.

    See path_resolution(7). Whoever can change one of them can lead it elsewhere.
    """
    at = Path("/")
    left = [*reversed(Path(path).parts)]
    while left:
        part = left.pop()
        here = at.parent if part == ".." else at / part
        if here.is_symlink():
            left += reversed(here.readlink().parts)
        else:
            at = here
            yield at


def _check_part(path: Path) -> None:
    about = path.stat()
    mode = about.st_mode
    is_writable = mode & stat.S_IWOTH or (mode & stat.S_IWGRP and about.st_gid >= _FIRST_USER_GID)
    if about.st_uid != 0 or is_writable:
        raise CannotInstall(
            f"others than root can change {path}, and what is in it would run as root",
            hint=_ELSEWHERE,
        )
    needed = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
    if mode & needed != needed:
        raise CannotInstall(f"the user aitbcd cannot read {path}", hint=_ELSEWHERE)
