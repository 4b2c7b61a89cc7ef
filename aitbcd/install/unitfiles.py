"""The unit files as they are shipped, and as they are written for one installation.

systemd.syntax(7) and systemd.service(5) say how a word is quoted. A file is written whole or not at
all, and one that somebody else wrote is neither changed nor removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from aitbcd.errors import CannotInstall

#: What the shipped units start.
_SHIPPED = "/usr/bin/aitbcd"
#: The state that those of one user speak of.
_SHIPPED_STATE = "%h/.local/state/aitbcd"
MARK = "# Written by 'aitbcd install'. To change it, use 'systemctl edit'.\n"
#: string_is_safe() of systemd, for what is to be executed.
_NOT_STARTED = set("\"'\\")
#: A section of ours, which systemd ignores.
_SECTION = "[X-Aitbcd]"


def shipped(name: str) -> str:
    """Return the text of a unit file; it lies in the package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "systemd", package.with_name("systemd")):
        try:
            return (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    raise CannotInstall(f"this installation lacks its unit file {name}", hint="install aitbcd anew")


def render(
    name: str,
    program: Sequence[str],
    *,
    state: str | None = None,
    environ: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return the text of a unit for this installation.

    Args:
        program: the words that start it.
        state: the directory that the launcher of one user is given.
        environ: what the daemon is told of where things lie.
        facts: what ``facts_of`` reads again.
    """
    first, *rest = program
    if set(first) & _NOT_STARTED:
        raise CannotInstall(
            f"systemd starts no program whose path has quotes or backslashes, and this is {first}",
            hint="install it in another folder",
        )
    ours = " ".join([quoted(first), *(quoted(word, is_argument=True) for word in rest)])
    lines = []
    for line in shipped(name).splitlines():
        if line.startswith("Exec"):
            line = line.replace(_SHIPPED, ours)
            if state is not None:
                line = line.replace(_SHIPPED_STATE, quoted(state, is_argument=True))
        lines.append(line)
        if line == "[Service]":
            pairs = (environ or {}).items()
            lines += [f"Environment={quoted(f'{key}={value}')}" for key, value in pairs]
    if facts:
        lines += ["", _SECTION, *(f"{key}={value}" for key, value in facts.items())]
    return MARK + "\n".join(lines) + "\n"


def facts_of(path: Path) -> dict[str, str]:
    """Return what ``render`` was told to note; nothing where there is no such file."""
    try:
        _, _, section = path.read_text(encoding="utf-8").partition(f"\n{_SECTION}\n")
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in section.splitlines() if "=" in line)


def quoted(word: str, *, is_argument: bool = False) -> str:
    """Return a word so that systemd reads exactly that; in arguments it also looks for ``$``.

    Raises:
        CannotInstall: no unit file can say it.
    """
    if not word.isprintable():
        raise CannotInstall(
            f"{word!r} cannot stand in a unit file", hint="choose a path without such characters"
        )
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text.replace("$", "$$") if is_argument else text}"'


def check_ours(paths: Iterable[Path]) -> None:
    """Refuse to go on where a file of that name is somebody else's.

    Raises:
        CannotInstall: naming it.
    """
    for path in paths:
        if path.exists() and not _is_ours(path):
            raise CannotInstall(
                f"{path} is there and not from 'aitbcd install'",
                hint="move it out of the way if it is not needed",
            )


def write(path: Path, text: str) -> None:
    """Write a file whole; a crash leaves the old one, or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def remove(path: Path) -> bool:
    """Remove a file of ours, and what a crash left beside it; tell whether it was there."""
    path.with_name(f".{path.name}.new").unlink(missing_ok=True)
    if not _is_ours(path):
        return False
    path.unlink(missing_ok=True)
    return True


def _is_ours(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline() == MARK
    except FileNotFoundError:
        return False
