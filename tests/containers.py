"""What docker and podman make of a container, without them: cgroups of their names, real ones.

The paths are those that the tools make (docker 28.2 and podman 4.3, with their drivers for systemd
and for cgroupfs), as /proc/PID/cgroup shows them. A test that has no rights for one is skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.driver import program

ID = "0123456789abcdef" * 4
OTHER_ID = "fedcba9876543210" * 4
#: By root's docker and podman.
OF_ROOT = {
    "docker, systemd": "/system.slice/docker-{id}.scope",
    "docker, cgroupfs": "/docker/{id}",
    "podman, systemd": "/machine.slice/libpod-{id}.scope/container",
    "podman, cgroupfs": "/libpod_parent/libpod-{id}",
}
#: By a user's own.
OF_USER = {
    "docker, rootless": "/user.slice/user-{uid}.slice/user@{uid}.service/user.slice/"
    "docker-{id}.scope",
    "podman, rootless": "/user.slice/user-{uid}.slice/user@{uid}.service/user.slice/"
    "libpod-{id}.scope/container",
}
#: Hierarchies in which processes can be put into cgroups, the first that there is.
_ROOTS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup")


@contextmanager
def cgroup(path: str) -> Iterator[Path]:
    """Make a cgroup of this path, with those above it that are not there."""
    root = next((Path(each) for each in _ROOTS if Path(each, "cgroup.procs").exists()), None)
    if root is None or os.getuid() != 0:
        pytest.skip("needs root and a cgroup hierarchy")
    made: list[Path] = []
    folder = root
    try:
        for name in path.strip("/").split("/"):
            folder = folder / name
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        yield folder
    finally:
        for each in reversed(made):
            with suppress(OSError):
                each.rmdir()


@contextmanager
def container(
    path: str, *argv: str, uid: int = 0, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a container's cgroup, as a child of nobody who knows of a job."""
    with cgroup(path) as folder, program(*argv, env=env or {}, user=uid) as running:
        (folder / "cgroup.procs").write_text(str(running.pid))
        yield running
        running.kill()
        running.wait()
