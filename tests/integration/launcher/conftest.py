"""A launcher with the test as its daemon, and a second user where root can make one."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator

import pytest

from tests.launcher import Daemon, Stage, Who


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A state directory without a launcher."""
    with Stage() as made:
        yield made


@pytest.fixture
def daemon(stage: Stage) -> Daemon:
    """The connection to a launcher that was just started."""
    assert stage.launch(), stage.said()
    made = stage.connect()
    made.hello()
    return made


@pytest.fixture(scope="session")
def other() -> Iterator[Who]:
    """Another user than root, with a group of his own and a further one."""
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    name = f"aitbcd-l{os.getpid()}"
    further = f"{name}-x"
    subprocess.run(["groupadd", further], check=True)
    # The kernel counts a uid's processes, also those of users of that number in a machine that
    # another test has booted: theirs begin at 1000.
    uid = ["--key", "UID_MIN=20000", "--key", "GID_MIN=20000"]
    command = ["useradd", *uid, "--create-home", "--shell", "/bin/sh", "--groups", further, name]
    subprocess.run(command, check=True)
    entry = pwd.getpwnam(name)
    yield Who(entry.pw_uid, entry.pw_gid, name)
    subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)
    subprocess.run(["groupdel", further], check=True)
