"""The service of one user without root: units under his own systemd (``systemctl --user``)."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from aitbcd import paths, settings
from aitbcd.errors import CannotInstall
from aitbcd.install import unitfiles
from aitbcd.install.manager import Manager
from aitbcd.install.service import (
    DAEMON,
    JOBS,
    LAUNCHER,
    Service,
    asked,
    beside,
    kept,
    next_steps,
    remove_folder,
    remove_state,
)
from aitbcd.launcher.protocol import is_locked

#: Where a shell may have said that things lie; systemd does not know what shells say.
_OURS = ("AITBCD_STATE_DIR", "AITBCD_RUNTIME_DIR", "AITBCD_CONFIG")
_XDG = ("XDG_STATE_HOME", "XDG_CONFIG_HOME")
_LINGER = Path("/var/lib/systemd/linger")


class Own(Service):
    def __init__(self, environ: Mapping[str, str], uid: int) -> None:
        self._uid = uid
        runtime = f"/run/user/{uid}"
        # su(1) and cron(8) leave it out, and su hands on that of another user.
        environ = {**environ, "XDG_RUNTIME_DIR": runtime}
        super().__init__(Manager(environ, is_user=True))
        self._environ = {
            **{name: os.path.abspath(environ[name]) for name in _OURS if environ.get(name)},
            **{name: environ[name] for name in _XDG if environ.get(name, "").startswith("/")},
        }
        self._where = paths.resolve(environ=environ, uid=uid)
        self._home = Path(environ.get("HOME") or "/")

    @cached_property
    def files(self) -> Mapping[str, Path]:
        # His manager may have been started without what his shell says.
        said = self._environ.get("XDG_CONFIG_HOME")
        known = self.manager.show("UnitPath")
        folder = self._home / ".config/systemd/user"
        if said and f"{said}/systemd/user" in known:
            folder = Path(said) / "systemd/user"
        return {f"user/{name}": folder / name for name in (DAEMON, LAUNCHER, JOBS)}

    def text(self, name: str) -> str:
        state = str(self._where.state)
        if name != f"user/{DAEMON}":
            return unitfiles.render(name, self.program, state=state)
        facts = {"State": state, "Config": str(self._where.config)}
        return unitfiles.render(name, self.program, environ=self._environ, facts=facts)

    def check(self) -> None:
        self._check_manager()
        settings.load(self._where.config, is_named=self._where.config_is_named)
        state = self._where.state
        if not self.manager.is_active(DAEMON) and (pid := _holder(self._where.lock)):
            raise CannotInstall(
                f"a daemon that was started by hand serves {state}: pid {pid}",
                hint=f"end it, its jobs go on, and do this again: kill {pid}",
            )

    def install(self) -> None:
        self.check()
        self.write()
        self.start()
        aitbcctl = beside(self.program)
        steps = [
            f"{aitbcctl} submit -- COMMAND    a first job",
            f"{aitbcctl} doctor    whether all is well",
            f"{self._where.config}    may change what jobs share; it counts when saved",
            f"{shlex.join(self.program)} install --user    again, after an upgrade",
        ]
        if not self._lingers():
            steps.insert(
                0,
                "loginctl enable-linger    without it your jobs end when you log out, and nothing"
                " starts at boot (root can do it for you: loginctl enable-linger"
                f" {self._name})",
            )
        next_steps(steps)

    def question(self, is_purge: bool) -> str | None:
        self._check_manager()
        return asked(self._installed[0], is_purge=is_purge)

    def uninstall(self, *, is_purge: bool) -> None:
        self._check_manager()
        state, config = self._installed
        self.stop()
        self.remove()
        with suppress(OSError):
            self._where.runtime.rmdir()
        if not is_purge:
            kept(state, config)
            return
        remove_state(state)
        config.unlink(missing_ok=True)
        if config.parent.name == "aitbcd" and config.parent.is_dir():
            remove_folder(config.parent)

    @cached_property
    def _installed(self) -> tuple[Path, Path]:
        """Return the state and the configuration that the installed units speak of."""
        facts = unitfiles.facts_of(self.files[f"user/{DAEMON}"])
        state, config = facts.get("State"), facts.get("Config")
        return Path(state or self._where.state), Path(config or self._where.config)

    def _check_manager(self) -> None:
        if self._uid == 0:
            raise CannotInstall(
                "--user is for people", hint="root installs it for the machine: aitbcd install"
            )
        self.manager.check(
            f"log in as {self._name} (su does not start one), or have root start one that lasts:"
            f" loginctl enable-linger {self._name}"
        )

    @property
    def _name(self) -> str:
        try:
            return pwd.getpwuid(self._uid).pw_name
        except KeyError:
            return f"#{self._uid}"

    def _lingers(self) -> bool:
        return (_LINGER / self._name).exists()


def _holder(lock: Path) -> str | None:
    """Return the pid of the daemon that holds a state directory."""
    try:
        with lock.open() as file:
            return file.read(32).strip() if is_locked(file.fileno()) else None
    except FileNotFoundError:
        return None
