"""The service of the whole machine: what the Debian package does, for an installation by pip."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from aitbcd import paths, settings
from aitbcd.errors import CannotInstall
from aitbcd.install import program, unitfiles
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
    say,
)

_SOCKET, _TCP = "aitbcd.socket", "aitbcd-tcp.socket"
_USER, _GROUPS = "aitbcd", ("aitbc", "aitbc-admin")
_UNITS = Path("/etc/systemd/system")
_SYSUSERS, _TMPFILES = Path("/etc/sysusers.d/aitbcd.conf"), Path("/etc/tmpfiles.d/aitbcd.conf")
#: Where packages put units.
_PACKAGED = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
_STATE, _CONFIG = Path(paths.SYSTEM_STATE), Path(paths.SYSTEM_CONFIG)


class System(Service):
    def __init__(self) -> None:
        super().__init__(Manager(os.environ, is_user=False))

    @cached_property
    def files(self) -> Mapping[str, Path]:
        units = {name: _UNITS / name for name in (DAEMON, LAUNCHER, JOBS, _SOCKET, _TCP)}
        return {"aitbcd.sysusers": _SYSUSERS, "aitbcd.tmpfiles": _TMPFILES, **units}

    def text(self, name: str) -> str:
        return unitfiles.render(name, self.program)

    def check(self) -> None:
        self._check_root()
        for folder in _PACKAGED:
            if (folder / DAEMON).exists():
                raise CannotInstall(
                    f"the package of the distribution is installed: {folder / DAEMON}",
                    hint="use that one, or remove it first: apt remove aitbcd",
                )
        self.manager.check("see what 'systemctl status' says")
        program.check_for_system(self.program)
        settings.load(_CONFIG)

    def install(self) -> None:
        self.check()
        self.write()
        _run("systemd-sysusers", _SYSUSERS)
        _run("systemd-tmpfiles", "--create", _TMPFILES)
        self.start()
        if not self.manager.is_active(_TCP):
            say("no HTTP on 127.0.0.1:8000, only the Unix socket: journalctl -u aitbcd-tcp.socket")
        aitbcctl = beside(self.program)
        next_steps(
            [
                f"usermod --append --groups {_GROUPS[0]} NAME    who may submit jobs",
                f"usermod --append --groups {_GROUPS[1]} NAME    who may see and end all jobs",
                f"{aitbcctl} doctor    whether all is well",
                f"ln -s {aitbcctl} /usr/local/bin/    so that everybody finds it",
                f"{_CONFIG}    may change what jobs share, limits, prices; it counts when saved",
                f"{shlex.join(self.program)} install    again, after an upgrade",
            ]
        )

    def question(self, is_purge: bool) -> str | None:
        self._check_root()
        return asked(_STATE, is_purge=is_purge)

    def uninstall(self, *, is_purge: bool) -> None:
        self._check_root()
        self.manager.check("see what 'systemctl status' says")
        if (_PACKAGED[0] / DAEMON).exists():
            raise CannotInstall(
                "the package of the distribution is installed", hint="apt remove aitbcd"
            )
        self.stop(_SOCKET, _TCP)
        self.remove()
        shutil.rmtree(paths.SYSTEM_RUNTIME, ignore_errors=True)
        if not is_purge:
            kept(_STATE, _CONFIG)
            return
        remove_state(_STATE)
        _CONFIG.unlink(missing_ok=True)
        if _CONFIG.parent.is_dir():
            remove_folder(_CONFIG.parent)
        for command in (["userdel", _USER], *(["groupdel", group] for group in _GROUPS)):
            subprocess.run(command, capture_output=True, check=False)
        say(f"removed    the user {_USER}, the groups {' and '.join(_GROUPS)}")

    def _check_root(self) -> None:
        if os.getuid() != 0:
            raise CannotInstall(
                "only root can do this for the whole machine",
                hint="put sudo before it, or do it for yourself alone: --user",
            )


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.split())
        raise CannotInstall(f"'{' '.join(map(str, command))}' failed: {said}")
