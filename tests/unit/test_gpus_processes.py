"""Who a process on a GPU is, from /proc."""

from __future__ import annotations

import os
import sys
import time

import pytest

from aitbcd.gpus.processes import (
    COMMAND_LENGTH_MAX,
    are_arguments_hidden,
    boot_at,
    claim_of,
    command_of,
    started_at,
    uid_of,
)
from tests.driver import program

PROC = "23 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw"
ROOT = "28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", False),
        (",hidepid=0", False),
        (",hidepid=off", False),
        (",gid=4,hidepid=2", True),
        (",hidepid=invisible", True),
        (",hidepid=noaccess", True),
    ],
)
def test_arguments_are_hidden_where_proc_is_mounted_so(options: str, expected: bool) -> None:
    assert are_arguments_hidden(f"{ROOT}\n{PROC}{options}\n") is expected
    assert not are_arguments_hidden(f"{ROOT},hidepid=2\n{PROC}\n")


def test_a_command_is_one_short_printable_line() -> None:
    code = "import time; print(flush=True); time.sleep(3600)"
    words = ["a\nb", "\udcff", "x" * 4000]
    with program(sys.executable, "-c", code, *words) as running:
        assert running.stdout is not None
        running.stdout.readline()
        command = command_of(running.pid)
        name = command_of(running.pid, is_whole=False)
    assert command is not None
    assert command.startswith(f"{os.path.basename(sys.executable)} -c import time;")
    assert (len(command), command[-1], "\n" in command) == (COMMAND_LENGTH_MAX, "\u2026", False)
    assert name is not None
    assert name.startswith("python")


def test_a_process_is_told_by_its_user_and_start() -> None:
    with program("sleep", "3600") as running:
        since = started_at(running.pid, boot_at())
        assert uid_of(running.pid) == os.getuid()
    assert since is not None
    # The start counts in ticks from a boot time in whole seconds.
    assert abs(since - time.time_ns() // 1000) < 60_000_000


def test_a_process_that_is_gone_is_nobody() -> None:
    gone = 2**22 + 1
    assert (uid_of(gone), command_of(gone), started_at(gone, 0), claim_of(gone)) == (None,) * 4
