"""The command line of ``aitbcd install`` and ``aitbcd uninstall``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from aitbcd.errors import AitbcError
from aitbcd.install.own import Own
from aitbcd.install.service import Service
from aitbcd.install.system import System


def run(arguments: Sequence[str]) -> int:
    """Do it; return the exit code."""
    options = command_line().parse_args(arguments)
    try:
        service: Service = Own(os.environ, os.getuid()) if options.user else System()
        if options.verb == "install":
            service.install()
        elif options.is_sure or _is_meant(service.question(options.purge)):
            service.uninstall(is_purge=options.purge)
        else:
            print("nothing was changed", file=sys.stderr)
            return 1
    except AitbcError as error:
        print(f"aitbcd: {error.detail}", file=sys.stderr)
        if error.hint:
            print(f"        {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("aitbcd: broken off; the same command goes on from there", file=sys.stderr)
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"aitbcd: {where}{error.strerror}; when that is mended, do it again", file=sys.stderr)
        return 1
    return 0


def _is_meant(question: str | None) -> bool:
    """Ask, where there is something to ask, and a terminal to ask on."""
    if question is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aitbcd",
        description="Put this installation under systemd, or take it out again. As root for the"
        " whole machine; with --user for yourself. Where the package of the distribution is"
        " installed, it has done so already.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    install = verbs.add_parser(
        "install",
        help="write the units, enable and start them; again after an upgrade",
        description="Write the units of systemd for this installation, enable them, and start them."
        " Run it again after an upgrade: jobs go on.",
    )
    uninstall = verbs.add_parser(
        "uninstall",
        help="end all jobs, stop and remove the units",
        description="End all jobs in order, stop the units and remove them. The queue and all"
        " results stay. Asks first, on a terminal only.",
    )
    for verb in (install, uninstall):
        verb.add_argument(
            "--user",
            action="store_true",
            help="without root: for yourself, under your own systemd (systemctl --user)",
        )
    uninstall.add_argument(
        "--purge", action="store_true", help="remove the queue, all results and the configuration"
    )
    uninstall.add_argument("-y", "--yes", dest="is_sure", action="store_true", help="do not ask")
    return parser
