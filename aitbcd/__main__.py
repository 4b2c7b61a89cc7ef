"""The program ``aitbcd``: the daemon, or what needs none of it and starts at once without."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the console script ``aitbcd``."""
    arguments = sys.argv[1:]
    match arguments[:1]:
        case ["launcher"]:
            _become_launcher(arguments[1:])
        case ["install" | "uninstall"]:
            from aitbcd import install

            sys.exit(install.run(arguments))
    from aitbcd import daemon

    daemon.main()


def _become_launcher(arguments: list[str]) -> None:
    """Be the launcher instead: isolated, with nothing but the standard library."""
    program = os.path.join(os.path.dirname(__file__), "launcher")
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-X", "utf8", program, *arguments])


if __name__ == "__main__":
    main()
