"""A machine with a kernel of its own, and so with every controller of cgroup v2: under qemu(1).

A container has what controllers its host lets it have, which is often none. The processor is
emulated (TCG): that needs no rights and no hardware, and a boot takes a quarter of a minute. The
kernel is Debian's for clouds, which drives an NVMe disk without any module; it is unpacked in the
cache and never installed. Commands go through the second serial port to a program in the machine.
"""

from __future__ import annotations

import compileall
import fcntl
import fnmatch
import json
import platform
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO

import starlette

from tests import machine
from tests.machine import CACHE, NEEDED, OURS, ROOT, Machine
from tests.service import DEADLINE_S, wait_for

_KERNEL = "linux-image-cloud-amd64"
_CALLED = ("qemu-system-x86_64", "mke2fs", "apt-get", "dpkg-deb")
_MEMORY_MIB, _DISK_MIB = 1024, 2048
_ENABLE = "systemctl enable --quiet aitbcd.service aitbcd-launcher.service"
#: A busy machine emulates another one slowly.
_DEADLINE_S = 5 * DEADLINE_S
#: What is large among what tests need, and not needed by a daemon.
_LEFT_OUT = ("*mypy*", "torch*", "nvidia*", "triton*", "pip*", "setuptools*", "*schema*", "ruff*")
#: Units that nothing here needs, and that take their part of a boot.
_MASKED = (
    "serial-getty@ttyS0.service", "getty@tty1.service", "e2scrub_reap.service",
    "modprobe@.service", "systemd-modules-load.service", "systemd-random-seed.service",
    "systemd-update-utmp.service", "dev-hugepages.mount", "dev-mqueue.mount",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
)  # fmt: skip
_AGENT = """import json, subprocess, tty
with open("/dev/ttyS1", "r+b", buffering=0) as port:
    tty.setraw(port)
    def say(answer):
        data = json.dumps(answer).encode() + b"\\n"
        while data:
            data = data[port.write(data):]
    say("ready")
    line = b""
    while True:
        line += port.read(1)
        if line.endswith(b"\\n"):
            command, environ = json.loads(line)
            line = b""
            done = subprocess.run(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, cwd="/",
            )
            say([done.returncode, done.stdout.decode("utf-8", "replace")])
"""
_AGENT_UNIT = """[Unit]
DefaultDependencies=no
[Service]
ExecStart=/usr/bin/python3 -I /etc/agent.py
OOMScoreAdjust=-1000
"""


def reason_against() -> str | None:
    """Return why there can be no such machine here."""
    if against := machine.reason_against():
        return against
    if missing := [each for each in _CALLED if not shutil.which(each)]:
        return f"not installed: {', '.join(missing)}"
    if platform.machine() != "x86_64":
        return f"the machine's kernel is for x86_64, and this is {platform.machine()}"
    return None


def kernel() -> Path:
    """Return a kernel; the first time it is fetched, which takes the network."""
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / "vmlinuz"
    with (CACHE / ".lock").open("w") as lock, tempfile.TemporaryDirectory() as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            said = subprocess.run(
                ["apt-cache", "depends", "--important", _KERNEL],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            package = next(line.split()[-1] for line in said.splitlines() if "Depends:" in line)
            subprocess.run(["apt-get", "download", "-qq", package], check=True, cwd=folder)
            (deb,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "--extract", deb, folder], check=True)
            (found,) = Path(folder).glob("boot/vmlinuz-*")
            shutil.copyfile(found, f"{made}.new")
            Path(f"{made}.new").rename(made)
    return made


def _left_out(folder: str, names: list[str]) -> set[str]:
    if Path(folder) != Path(starlette.__file__).parents[1]:
        return set()
    return {name for pattern in _LEFT_OUT for name in fnmatch.filter(names, pattern)}


class VirtualMachine(Machine):
    """Used like a container, but it is installed before it boots: at its own pace nothing hurries.

    Args:
        prepare: a shell line that is run in its tree before.
    """

    def __init__(self, prepare: str) -> None:
        super().__init__()
        self._prepare = prepare
        self._disk = self._folder / "disk"
        self._port = socket.socket(socket.AF_UNIX)
        self._port.settimeout(_DEADLINE_S)
        self._said: BinaryIO = self._port.makefile("rb")

    def boot(self) -> None:
        if not self._disk.exists():
            self._make_disk()
        address = str(self._folder / "port")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "qemu64"),
                    *("-smp", "2", "-m", str(_MEMORY_MIB), "-nodefaults", "-no-user-config"),
                    *("-display", "none", "-kernel", str(kernel()), "-append"),
                    "root=/dev/nvme0n1 rw console=ttyS0 nowatchdog mitigations=off",
                    *("-serial", "stdio", "-serial", f"unix:{address},server=on,wait=off"),
                    *("-drive", f"file={self._disk},if=none,id=disk,format=raw,cache=unsafe"),
                    *("-device", "nvme,serial=disk,drive=disk"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for("it has a port", lambda: self._port.connect_ex(address) == 0, log=self.log)
        self.rebooted()

    def rebooted(self) -> None:
        """Wait until it has booted."""
        assert json.loads(self._said.readline()) == "ready"
        self("systemctl is-system-running --wait", check=False)

    def _make_disk(self) -> None:
        self.place()
        for name in ("aitbcd", "aitbcctl", "systemd"):
            shutil.copytree(ROOT / name, f"{self.root}{OURS}/{name}")
        needed = Path(starlette.__file__).parents[1]
        shutil.copytree(needed, f"{self.root}{NEEDED}", ignore=_left_out)
        for folder in (OURS, NEEDED):
            # There it would take its time, or be done anew by who may not write it down.
            compileall.compile_dir(f"{self.root}{folder}", quiet=2)
        etc = self.root / "etc"
        (etc / "agent.py").write_text(_AGENT)
        units = etc / "systemd/system"
        (units / "agent.service").write_text(_AGENT_UNIT)
        wants = units / "sysinit.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "agent.service").symlink_to("../agent.service")
        # Without udev the port is waited for; nobody misses the others.
        for name in _MASKED:
            (units / name).symlink_to("/dev/null")
        line = f"systemd-sysusers 2>/dev/null && {_ENABLE} && {self._prepare}"
        subprocess.run(["chroot", self.root, "/bin/sh", "-c", line], check=True)
        command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d"]
        subprocess.run(
            [*command, self.root, self._disk, f"{_DISK_MIB}M"],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def cut_power(self) -> None:
        if self.is_up:
            assert self._process is not None
            self._process.kill()
            self._process.wait(DEADLINE_S)
        self._said.close()
        self._port.close()

    def _run(self, command: list[str], environ: dict[str, str]) -> tuple[int, str]:
        self._port.sendall(json.dumps([command, environ]).encode() + b"\n")
        code, said = json.loads(self._said.readline())
        return code, said
