"""Start the launcher: ``python -I -S .../aitbcd/launcher STATE-DIR [--lasting]``.

Run as a folder, without the site packages, so that nothing but the standard library is loaded.
``--ready-fd N`` is written to and closed once the launcher listens. ``--lasting`` is for a service:
it goes on without a daemon, and one of root for a daemon of another user keeps to the table
``[launcher]`` in ``--config FILE``. A user's own makes the folders: it starts before his daemon.
``--start-jobs-unit`` and ``--stop-jobs-unit`` are what the unit beside it runs, see ``jobs_unit``.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aitbcd.launcher.launcher import Launcher
    from aitbcd.launcher.rules import Rules


_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR)
_CONFIG = "/etc/aitbcd/aitbcd.toml"


def main() -> int:
    arguments = sys.argv[1:]
    if arguments in (["--start-jobs-unit"], ["--stop-jobs-unit"]):
        from aitbcd.launcher import jobs_unit

        return jobs_unit.start() if arguments == ["--start-jobs-unit"] else jobs_unit.stop()
    config = _CONFIG
    if "--config" in arguments[:-1]:
        at = arguments.index("--config")
        config = os.path.abspath(arguments[at + 1])
        del arguments[at : at + 2]
    is_lasting = "--lasting" in arguments
    if is_lasting:
        arguments.remove("--lasting")
    ready_fd = -1
    if "--ready-fd" in arguments:
        at = arguments.index("--ready-fd")
        ready_fd = int(arguments[at + 1])
        del arguments[at : at + 2]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: aitbcd launcher STATE-DIR [--lasting] [--config FILE]", file=sys.stderr)
        return 2
    return _serve(arguments[0], ready_fd, config, is_lasting=is_lasting)


def _serve(state: str, ready_fd: int, config: str, *, is_lasting: bool) -> int:
    try:
        launcher = _open(state, config, is_lasting=is_lasting)
    except ValueError as error:
        print(f"aitbcd launcher: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename not in (None, state) else ""
        hint = "; name the state directory of a daemon" if error.errno in _NO_FOLDER else ""
        words = f"cannot serve {state}: {error.strerror}{where}{hint}"
        print(f"aitbcd launcher: {words}", file=sys.stderr)
        return 1
    from aitbcd.launcher.linux import notify

    if ready_fd >= 0:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
    notify("READY=1")
    launcher.run()
    return 0


def _open(state: str, config: str, *, is_lasting: bool) -> Launcher:
    """Become the launcher of a state directory."""
    from aitbcd.launcher.launcher import Launcher

    if is_lasting and os.getuid() != 0:
        for folder in (state, f"{state}/run", f"{state}/results"):
            os.makedirs(folder, 0o700, exist_ok=True)
    state_fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # Jobs inherit it.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir("/")
    os.umask(0o027)
    status = os.stat(state_fd)
    rules = None
    if is_lasting and os.getuid() == 0 and status.st_uid != 0:
        rules = _rules(status.st_uid, config)
        # What we make is the daemon's to read, by its group.
        os.setresgid(status.st_gid, status.st_gid, status.st_gid)
    launcher = Launcher(state_fd, is_lasting=is_lasting, daemon_uid=status.st_uid, rules=rules)
    launcher.open()
    return launcher


def _rules(daemon_uid: int, config: str) -> Rules:
    """Read the table.

    Raises:
        ValueError: somebody has to mend the file, or what it says.
    """
    from aitbcd.launcher.rules import Rules

    try:
        return Rules(daemon_uid, config)
    except OSError as error:
        raise ValueError(f"{config}: {error.strerror}") from None


if __name__ == "__main__":
    # Instead of this folder, the one that holds the package, which -I and -S leave out; last, so
    # that nothing there stands before the standard library.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:1] = []
    sys.path.append(os.path.dirname(os.path.dirname(here)))
    sys.exit(main())
