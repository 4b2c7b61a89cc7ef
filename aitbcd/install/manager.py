"""systemd as it is spoken to through systemctl(1): the system's, or that of one user."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from aitbcd.errors import CannotInstall

#: Debian 12's. Older ones do not know all that the units say.
OLDEST = 252


class Manager:
    def __init__(self, environ: Mapping[str, str], *, is_user: bool) -> None:
        self._words = ["systemctl", "--user"] if is_user else ["systemctl"]
        self._journal = ["journalctl", "--user-unit" if is_user else "--unit"]
        self._environ = {**environ, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": ""}

    def __str__(self) -> str:
        """Return how a person calls it."""
        return " ".join(self._words)

    def check(self, hint: str) -> None:
        """Refuse one that is not there or too old.

        Raises:
            CannotInstall: ``hint`` says what to do where none runs.
        """
        if not os.path.isdir("/run/systemd/system"):
            raise CannotInstall(
                "systemd does not run this machine",
                hint="have whatever starts its services start 'aitbcd', or start it by hand",
            )
        said = self.show("Version")
        version = re.match(r"\d+", said)
        if version is None:
            raise CannotInstall(f"{self} does not reach a systemd", hint=hint)
        if int(version[0]) < OLDEST:
            raise CannotInstall(
                f"this machine has systemd {said}, and the units need {OLDEST}",
                hint="upgrade the machine, or start 'aitbcd' by hand",
            )

    def show(self, name: str, unit: str | None = None) -> str:
        """Return a property of a unit, or of the manager; nothing where that cannot be had."""
        words = ["show", f"--property={name}", "--value", *([unit] if unit else [])]
        return self._run([*self._words, *words]).stdout.strip()

    def last_words(self, unit: str) -> str:
        """Return the last lines that a unit has written, as far as we may see them."""
        options = ["--quiet", "--no-pager", "--output=cat", "--lines=8"]
        return self._run([*self._journal, unit, *options]).stdout.strip()

    def is_active(self, unit: str) -> bool:
        return self.show("ActiveState", unit) in ("active", "activating", "reloading")

    def try_to(self, *words: str) -> bool:
        """Have it do something that may well not be possible, or needed."""
        return self._run([*self._words, *words]).returncode == 0

    def tell(self, *words: str) -> None:
        """Have it do something.

        Raises:
            CannotInstall: it did not, in its own words.
        """
        done = self._run([*self._words, *words])
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise CannotInstall(
                f"'{self} {' '.join(words)}' failed: {said}",
                hint=f"mend that and do this again; what the daemon said: {self} status aitbcd",
            )

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise CannotInstall(f"cannot run {command[0]}: {error.strerror}") from None
