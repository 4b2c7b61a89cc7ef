"""A log over its limit keeps its first and its last part, and nobody waits for that.

The jobs look at their own log (fstat(2) of the descriptor), so that no test depends on when the
supervisor looks: a job that wrote goes on only when the room has been given back.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service import PLAIN_CONFIG
from tests.system.test_recovery import Box, stop

pytestmark = pytest.mark.system

MIB = 1 << 20
LIMIT = MIB
CONFIG = PLAIN_CONFIG + '[slots]\ncpus = 2\n[jobs]\nlog_limit = "1M"\n'
NOTE = re.compile(rb"\n\[aitbcd: (\d+) bytes dropped here; this log had passed its limit\]\n")

#: Lines of 64 bytes that say their offset, so that what is kept can be compared with its place.
WRITE = """
import os, sys, time
def write(fd, start, length):
    lines = b"".join(b"%63d\\n" % (at * 64) for at in range(start // 64, (start + length) // 64))
    while lines:
        lines = lines[os.write(fd, lines):]
def wait_for_room(fd):
    while os.fstat(fd).st_blocks * 512 > 3 << 20:
        time.sleep(0.01)
"""
BOUNDED = (
    WRITE
    + """
for piece in range(25):
    write(1, piece << 23, 1 << 23)
    wait_for_room(1)
"""
)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    box.service.config.write_text(CONFIG)
    with box.service:
        box.connect()
        yield box
        box.http.close()


def python(box: Box, program: str, **more: object) -> str:
    return box.submit(sys.executable, "-c", program, **more)


def sealed(box: Box, job: str) -> Path:
    return box.service.state / "results" / job


def output(box: Box, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sealed(box, job) / "output.json").read_bytes())
    return found


def check(box: Box, job: str, log: str, size: int, written: bytes | None = None) -> int:
    """Assert that a log of this size is cut as promised; return how much of it is left."""
    path = sealed(box, job) / "logs" / log
    kept = path.read_bytes()
    note = NOTE.search(kept)
    assert note
    first, last, dropped = kept[: note.start()], kept[note.end() :], int(note[1])
    assert len(first) + dropped + len(last) == size
    assert len(first) >= LIMIT // 2
    assert LIMIT // 2 <= len(last) <= 2 * LIMIT
    told = output(box, job)["logs_dropped"]
    assert told[log] == {"at": len(first), "bytes": dropped}
    if written is None:
        assert first[:64] == b"%63d\n" % 0
        assert first.count(b"\n") == len(first) // 64
        lines = last.splitlines(keepends=True)[1:]
        assert lines == [b"%63d\n" % at for at in range(size - 64 * len(lines), size, 64)]
    else:
        assert first == written[: len(first)]
        assert last == written[len(first) + dropped :]
    assert path.stat().st_blocks * 512 <= len(kept) + 8192
    box.verify(job)
    return len(kept)


def test_a_log_stays_bounded_while_it_is_written_and_is_cut_once(box: Box) -> None:
    job = python(box, BOUNDED)
    assert box.wait_end(job)["status"] == "completed"
    kept = check(box, job, "stdout.log", 200 * MIB)
    assert kept < 2 * LIMIT
    # result.txt is the same file, and stderr.log was not concerned.
    both = (sealed(box, job) / "result.txt", sealed(box, job) / "logs/stdout.log")
    assert both[0].samefile(both[1])
    assert set(output(box, job)["logs_dropped"]) == {"stdout.log"}
    assert (sealed(box, job) / "logs/stderr.log").read_bytes() == b""


def test_a_job_writes_on_while_its_supervisor_is_stopped(box: Box) -> None:
    program = (
        WRITE
        + """
open("ran", "w").write("x\\n")
while not os.path.exists("go"):
    time.sleep(0.01)
for piece in range(200):
    write(1, piece << 20, 1 << 20)
open("ran", "a").write("x\\n")
"""
    )
    job = python(box, program)
    box.wait_started()
    box.wait(job, "running")
    supervisor = box.supervisor_of(job)
    stop(supervisor)
    box.release()
    box.wait_started(2)
    os.kill(supervisor, signal.SIGCONT)
    assert box.wait_end(job)["status"] == "completed"
    check(box, job, "stdout.log", 200 * MIB)


def test_two_streams_have_a_limit_each(box: Box) -> None:
    program = (
        WRITE
        + """
for piece in range(8):
    write(1, piece << 22, 1 << 22)
    write(2, piece << 21, 1 << 21)
    wait_for_room(1)
    wait_for_room(2)
"""
    )
    job = python(box, program)
    box.wait_end(job)
    check(box, job, "stdout.log", 32 * MIB)
    check(box, job, "stderr.log", 16 * MIB)


def test_bytes_of_any_value_are_kept(box: Box) -> None:
    data = box.folder / "data"
    data.write_bytes(os.urandom(6 * MIB))
    job = box.submit("cat", str(data))
    box.wait_end(job)
    check(box, job, "stdout.log", 6 * MIB, data.read_bytes())


def test_zeros_are_no_hole(box: Box) -> None:
    job = box.submit("head", "-c", str(6 * MIB), "/dev/zero")
    box.wait_end(job)
    check(box, job, "stdout.log", 6 * MIB, bytes(6 * MIB))


def test_a_log_within_its_limit_is_whole(box: Box) -> None:
    job = box.submit("head", "-c", str(LIMIT), "/dev/zero")
    box.wait_end(job)
    assert (sealed(box, job) / "logs/stdout.log").stat().st_size == LIMIT
    assert output(box, job)["logs_dropped"] == {}


def test_a_log_that_its_job_empties_is_watched_again(box: Box) -> None:
    """``> /dev/stdout`` in a shell truncates the log; what follows has the limit too."""
    program = (
        WRITE
        + """
write(1, 0, 64 << 20)
wait_for_room(1)
os.truncate(1, 0)
for piece in range(4):
    write(1, piece << 22, 1 << 22)
    wait_for_room(1)
"""
    )
    job = python(box, program)
    box.wait_end(job)
    check(box, job, "stdout.log", 16 * MIB)


def test_a_log_of_an_ended_job_is_cut_without_its_supervisor(box: Box) -> None:
    job = python(box, BOUNDED + "open('ran', 'w').write('x\\n')\ntime.sleep(1000)")
    box.wait_started()
    box.wait(job, "running")
    box.kill(supervisors_too=True)
    box.start()
    ended = box.wait_end(job)
    assert ended["reason"] == "lost"
    check(box, job, "stdout.log", 200 * MIB)
