"""A machine with a real systemd: a container over a Debian tree, booted by systemd-nspawn(1).

The tree is made once by debootstrap and kept in a cache; each machine has a layer of its own over
it, which a reboot keeps. Commands go into it with nsenter(1): there is no bus outside to ask.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import starlette

from aitbcd.launcher import cgroups
from tests.service import DEADLINE_S, children, wait_for

RELEASE = "bookworm"
CACHE = Path(os.environ.get("AITBCD_TEST_CACHE", "/var/cache/aitbcd-tests"))
_INCLUDED = (
    "systemd,systemd-sysv,dbus,python3,adduser,passwd,procps,iproute2,curl,util-linux,coreutils"
)
ROOT = Path(__file__).resolve().parents[1]
FINAL = frozenset({"completed", "failed", "canceled"})
#: Asks the daemon; where a processor is emulated, aitbcctl takes two seconds to begin.
_CURL = "curl --silent --show-error --max-time 100 --unix-socket /run/aitbcd/aitbcd.sock"
#: Where the program and what it needs lie in the machine.
OURS, NEEDED = "/opt/aitbcd/source", "/opt/aitbcd/needed"
_PROGRAM = """#!/usr/bin/python3 -I
import sys
sys.path[:0] = ["{ours}", "{needed}"]
from {module} import {function}
sys.exit({function}())
"""


def reason_against() -> str | None:
    """Return why there can be no such machine here."""
    if os.getuid() != 0:
        return "only root can boot a machine"
    missing = [
        each for each in ("systemd-nspawn", "debootstrap", "nsenter") if not shutil.which(each)
    ]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if sys.version_info[:2] != (3, 11):
        return f"the machine's Python is 3.11, and what is installed here is for {sys.version}"
    return None


def tree() -> Path:
    """Return a Debian tree; the first time it is made, which takes a minute and the network."""
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / RELEASE
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            new = CACHE / f"{RELEASE}.new"
            shutil.rmtree(new, ignore_errors=True)
            # From where debootstrap itself is told to take it.
            command = ["debootstrap", "--variant=minbase", f"--include={_INCLUDED}"]
            subprocess.run([*command, RELEASE, new], check=True, stdout=subprocess.DEVNULL)
            new.rename(made)
    return made


class Machine:
    """Boot it with ``with``; what is in it goes with it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="aitbcd-machine-"))
        self.root = self._folder / "root"
        self.log = self._folder / "console.log"
        #: Where its cgroups begin. Two machines in one would have each other's units.
        own = cgroups.own_folders().values()
        self._cgroups = [Path(each) / self._folder.name for each in own]
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        # An overlay's own layers must not lie on another overlay.
        self._mount("-t", "tmpfs", "-o", "mode=755", "aitbcd-machine", str(self._folder))
        for name in ("root", "upper", "work"):
            (self._folder / name).mkdir()
        layers = f"lowerdir={tree()},upperdir={self._folder}/upper,workdir={self._folder}/work"
        self._mount("-t", "overlay", "-o", layers, "aitbcd-machine", str(self.root))
        try:
            self.boot()
        except BaseException:
            self.cut_power()
            self._clean()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None and self.is_up:
                print(self("journalctl --no-pager -b -n 200", check=False))
        finally:
            self.cut_power()
            self._clean()

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    def _clean(self) -> None:
        for path in (self.root, self._folder):
            subprocess.run(["umount", "--lazy", path], check=False)
        for path in self._cgroups:
            for folder, _, _ in os.walk(path, topdown=False):
                os.rmdir(folder)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def boot(self) -> None:
        """Boot; return when all units have been started."""
        needed = Path(starlette.__file__).parents[1]
        for path in self._cgroups:
            path.mkdir(exist_ok=True)
        enter = "".join(f"echo $$ >{path}/cgroup.procs; " for path in self._cgroups)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("/bin/sh", "-ec", f'{enter}exec "$@"', "sh"),
                    *("systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit"),
                    *("--console=pipe", "--private-network", "--hostname=lab"),
                    *(f"--bind-ro={ROOT}:{OURS}", f"--bind-ro={needed}:{NEEDED}"),
                    f"--directory={self.root}",
                ],
                env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        pid = self._process.pid
        self._leader = wait_for("it has a first process", lambda: self._first(pid), log=self.log)
        self._until_booted()

    def _first(self, nspawn: int) -> int | None:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")
        for pid in children(nspawn):
            status = Path(f"/proc/{pid}/status").read_text()
            if any(line.split()[-1] == "1" for line in status.splitlines() if "NSpid" in line):
                return pid
        return None

    def _until_booted(self) -> None:
        def is_booted() -> bool:
            said = self("systemctl is-system-running", check=False).strip()
            return said in ("running", "degraded")

        wait_for("it has booted", is_booted, log=self.log)

    def power_off(self) -> None:
        """Shut down in order."""
        assert self._process is not None
        self("systemctl --no-block poweroff")
        self._process.wait(DEADLINE_S)

    def cut_power(self) -> None:
        """End everything at whatever instruction it is."""
        if self._process is None or self._process.poll() is not None:
            return
        # The first process of a PID namespace takes all others along.
        os.kill(self._leader, signal.SIGKILL)
        self._process.wait(DEADLINE_S)

    def __call__(
        self,
        line: str,
        *,
        user: str | None = None,
        check: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> str:
        """Run a shell line in it and return what it says."""
        command = ["/bin/sh"] if user is None else ["runuser", "--login", user, "--"]
        plain = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        code, said = self._run([*command, "-c", line], plain | dict(environ or {}))
        assert code == 0 or not check, f"{line}: {code}\n{said}"
        return said

    def _run(self, command: list[str], environ: dict[str, str]) -> tuple[int, str]:
        """Return the exit code of a command, and what it says."""
        done = subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", "--wdns=/", *command],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return done.returncode, done.stdout

    def code(self, line: str, user: str | None = None) -> int:
        """Return the exit code of a shell line."""
        said = self(f"({line}) >/dev/null 2>&1; echo $?", user=user)
        return int(said.split()[-1])

    def install(self) -> None:
        """Put the program and its units in their places, and start them."""
        self.place()
        self("systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")
        self("systemctl enable --now aitbcd.service aitbcd-launcher.service")

    def place(self) -> None:
        """Put the program and its units in their places."""
        units = self.root / "usr/lib/systemd/system"
        for unit in [*ROOT.glob("systemd/*.service"), *ROOT.glob("systemd/*.socket")]:
            shutil.copyfile(unit, units / unit.name)
        for kind in ("sysusers", "tmpfiles"):
            folder = self.root / f"usr/lib/{kind}.d"
            shutil.copyfile(ROOT / f"systemd/aitbcd.{kind}", folder / "aitbcd.conf")
        for name, module, function in (
            ("aitbcd", "aitbcd.__main__", "main"),
            ("aitbcctl", "aitbcctl.cli", "main"),
        ):
            program = self.root / "usr/bin" / name
            program.write_text(
                _PROGRAM.format(ours=OURS, needed=NEEDED, module=module, function=function)
            )
            program.chmod(0o755)


def submit(machine: Machine, line: str, user: str = "ada", options: str = "") -> str:
    return machine(f"aitbcctl submit {options} -c '{line}'", user=user).split()[-1]


def status(machine: Machine, job: str, user: str = "ada") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine(f"aitbcctl status {job} --json", user=user))
    return found


def until(machine: Machine, job: str, *wanted: str, user: str = "ada") -> dict[str, Any]:
    """Wait until a job is in such a state and return what its user is told."""
    path = f"http://localhost/v1/jobs/{job}"

    def reached() -> dict[str, Any] | None:
        said = machine(f"{_CURL} {path}", user=user, check=False)
        if not said.startswith("{"):
            return None  # the daemon is not there
        found: dict[str, Any] = json.loads(said)
        if found["status"] in wanted:
            return found
        if FINAL.issuperset(wanted):
            # The stream ends with the job.
            machine(f"{_CURL} --output /dev/null '{path}/events?follow=true'", check=False)
        return None

    return wait_for(f"{job} is {wanted}", reached)


def gated(machine: Machine, options: str = "") -> str:
    """Return a job that runs until ``open_gate``; it ignores SIGTERM."""
    machine("rm -f /tmp/gate")
    line = 'trap "" TERM; until test -e /tmp/gate; do sleep 0.1; done'
    job = submit(machine, line, options=options)
    until(machine, job, "running")
    return job


def open_gate(machine: Machine) -> None:
    machine("touch /tmp/gate")
