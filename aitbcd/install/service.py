"""Install and uninstall as they are for the system and for one user: steps that can be repeated.

Whatever ends this half way, the same command goes on: each step looks at what is there.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from aitbcd.errors import CannotInstall
from aitbcd.install import program, unitfiles
from aitbcd.install.manager import Manager

DAEMON, LAUNCHER, JOBS = "aitbcd.service", "aitbcd-launcher.service", "aitbcd-jobs.service"
#: What lies in a state directory, and the folders that are empty then. Somebody may have named one
#: of his own for it: what else is there is not ours to remove.
_STATE = (
    *("queue.db*", "gpus.json*", "gpu-holds.json*", "reserve", "lock"),
    *("daemon.log", "runtime/*.sock", "samples/job_*"),
    *("results/job_*", "results/.*job_*"),
    *("run/job_*", "run/.new.*", "run/launcher.*", "run/turn.*"),
)
_FOLDERS = ("results", "run", "runtime", "samples", "")


class Service(ABC):
    """``manager`` is who starts it; the rest says what is written where."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.program = program.find()

    @property
    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """What is shipped, and where it goes."""

    @abstractmethod
    def text(self, name: str) -> str:
        """Return what is to stand in a file."""

    @abstractmethod
    def install(self) -> None:
        """Write the units, enable them and start them.

        Raises:
            CannotInstall: it cannot be here; the reason and what to do.
        """

    @abstractmethod
    def question(self, is_purge: bool) -> str | None:
        """Return what to ask before ``uninstall``; None when nothing would be lost."""

    @abstractmethod
    def uninstall(self, *, is_purge: bool) -> None:
        """Take away what ``install`` has put there."""

    def write(self) -> None:
        """Write all files and have the manager read them."""
        unitfiles.check_ours(self.files.values())
        texts = {path: self.text(name) for name, path in self.files.items()}
        for path, text in texts.items():
            unitfiles.write(path, text)
            say(f"wrote      {path}")

    def start(self) -> None:
        """Start what does not run, and let the new version take over from what does."""
        was = self.manager.is_active(DAEMON)
        self.manager.tell("daemon-reload")
        self.manager.tell("--quiet", "enable", DAEMON)
        try:
            self.manager.tell("restart", LAUNCHER, DAEMON)
        except CannotInstall as error:
            words = self.manager.last_words(DAEMON)
            hint = f"the daemon's own words:\n{words}" if words else error.hint
            raise CannotInstall(error.detail, hint=hint) from None
        say("restarted; jobs went on" if was else "started")

    def stop(self, *units: str) -> None:
        """End all jobs in order, then stop the rest, and forget it."""
        there = [name for name in (JOBS, DAEMON, LAUNCHER, *units) if self._is_known(name)]
        if JOBS in there and self.manager.show("ActiveState", DAEMON) == "active":
            # With the daemon still there, which notes how they ended. One that is started again and
            # again would start these too.
            self.manager.tell("stop", LAUNCHER, JOBS)
        if there:
            self.manager.tell("stop", *there)
            say("stopped")
        if DAEMON in there:
            self.manager.tell("--quiet", "disable", DAEMON)

    def _is_known(self, unit: str) -> bool:
        return self.manager.show("LoadState", unit) == "loaded"

    def remove(self) -> None:
        for path in self.files.values():
            if unitfiles.remove(path):
                say(f"removed    {path}")
        self.manager.tell("daemon-reload")
        for path in self.files.values():
            if path.suffix in (".service", ".socket"):
                self.manager.try_to("reset-failed", path.name)


def beside(words: Sequence[str]) -> str:
    """Return how to call the command line of this installation."""
    found = Path(words[0]).with_name("aitbcctl")
    return shlex.quote(str(found)) if found.exists() else "aitbcctl"


def asked(state: Path, *, is_purge: bool) -> str | None:
    """Return the question before jobs are ended or data is removed; None for neither."""
    # Each has a folder there until its end is recorded.
    count = len(list(state.glob("run/job_*")))
    ends = f"end {count} job{'' if count == 1 else 's'} that may be running" if count else ""
    is_there = is_purge and state.exists()
    removes = f"remove the queue and all results in {state}" if is_there else ""
    words = " and ".join(part for part in (ends, removes) if part)
    return f"{words[0].upper()}{words[1:]}?" if words else None


def kept(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            say(f"kept       {path}")


def say(line: str) -> None:
    print(f"aitbcd: {line}", file=sys.stderr, flush=True)


def next_steps(lines: Sequence[str]) -> None:
    print("\nNext:", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)


def remove_state(state: Path) -> None:
    """Remove what a daemon has made in its state directory, and that when nothing else is there."""
    for pattern in _STATE:
        for path in state.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                _remove_tree(path)
            else:
                path.unlink()
    for folder in _FOLDERS:
        if (state / folder).is_dir():
            remove_folder(state / folder)


def _remove_tree(folder: Path) -> None:
    if os.getuid() != 0:
        # Results are read-only for their owner too. Root needs no such right, and must not follow
        # what others could put there.
        os.chmod(folder, 0o700)
        for name, folders, _ in os.walk(folder):
            for each in (os.path.join(name, inner) for inner in folders):
                if not os.path.islink(each):
                    os.chmod(each, 0o700)
    shutil.rmtree(folder)


def remove_folder(folder: Path) -> None:
    """Remove an empty folder; say it when there is something else in it."""
    try:
        folder.rmdir()
        say(f"removed    {folder}")
    except OSError as error:
        say(f"left       {folder}: {error.strerror}")
