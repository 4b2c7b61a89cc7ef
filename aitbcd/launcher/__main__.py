"""Start the launcher: ``python -I -S .../aitbcd/launcher STATE-DIR [--lasting]``.

Run as a folder, without the site packages, so that nothing but the standard library is loaded.
``--ready-fd N`` is written to and closed once the launcher listens.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aitbcd.launcher.launcher import Launcher


_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR)


def main() -> int:
    arguments = sys.argv[1:]
    is_lasting = "--lasting" in arguments
    if is_lasting:
        arguments.remove("--lasting")
    ready_fd = -1
    if "--ready-fd" in arguments:
        at = arguments.index("--ready-fd")
        ready_fd = int(arguments[at + 1])
        del arguments[at : at + 2]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: aitbcd launcher STATE-DIR [--lasting]", file=sys.stderr)
        return 2
    return _serve(arguments[0], ready_fd, is_lasting=is_lasting)


def _serve(state: str, ready_fd: int, *, is_lasting: bool) -> int:
    try:
        launcher = _open(state, is_lasting=is_lasting)
    except OSError as error:
        where = f": {error.filename}" if error.filename not in (None, state) else ""
        hint = "; name the state directory of a daemon" if error.errno in _NO_FOLDER else ""
        words = f"cannot serve {state}: {error.strerror}{where}{hint}"
        print(f"aitbcd launcher: {words}", file=sys.stderr)
        return 1
    if ready_fd >= 0:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
    launcher.run()
    return 0


def _open(state: str, *, is_lasting: bool) -> Launcher:
    """Become the launcher of a state directory."""
    from aitbcd.launcher.launcher import Launcher

    state_fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # Jobs inherit it.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir("/")
    os.umask(0o027)
    daemon_uid = os.stat(state_fd).st_uid
    launcher = Launcher(state_fd, is_lasting=is_lasting, daemon_uid=daemon_uid)
    launcher.open()
    return launcher


if __name__ == "__main__":
    # Instead of this folder, the one that holds the package, which -I and -S leave out; last, so
    # that nothing there stands before the standard library.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:1] = []
    sys.path.append(os.path.dirname(os.path.dirname(here)))
    sys.exit(main())
