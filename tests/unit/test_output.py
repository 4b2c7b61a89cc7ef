"""output.json: what the daemon writes it reads back, and what others wrote it does not believe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd import output
from aitbcd.model import (
    Attempt,
    Cause,
    Ending,
    Job,
    JobSpec,
    JobState,
    Owner,
    Priority,
    Reason,
    ResultsState,
    SeenGpu,
    SeenProcess,
    SeenXid,
    Snapshot,
)

MANIFEST = b"0" * 64 + b"  output.json\n"
SECOND = 1_000_000
Change = Callable[[Path], object]
SPEC = JobSpec(
    (b"python", b"\xff.py"),
    environment=(b"SECRET=hidden",),
    artifacts=(b"*.pt",),
    priority=Priority.HIGH,
)


def job(attempt: int = 1) -> Job:
    return Job(
        number=7,
        job_id="job_7k3m9q2x",
        owner=Owner(1000, "ada"),
        status=JobState.RUNNING,
        name="training",
        cpus=2,
        memory=None,
        gpus=0,
        timeout_s=60.0,
        priority=Priority.HIGH,
        retries=1,
        attempt=attempt,
        created_at=1 * SECOND,
    )


def build(
    status: JobState, ending: Ending, *, attempt: int = 1, started_at: int | None = 2 * SECOND
) -> dict[str, Any]:
    return output.build(
        job(attempt),
        SPEC,
        status,
        ending,
        started_at=started_at,
        earlier=[Attempt(1, "boot", SECOND, ending=ending)] if attempt > 1 else [],
        environment_names=["SECRET"],
        cwd="/home/ada/\udcff",
        miner_id="miner_00000000",
        gpu_uuids=(),
        kept_whole=["stdout.log"],
    )


def seal(folder: Path, document: dict[str, Any], sizes: list[int] | None = None) -> None:
    """Write what the sealer does: its own part, and the manifest."""
    files = [{"path": str(number), "size": size} for number, size in enumerate(sizes or [])]
    sealed = document | {"files": files, "logs_dropped": {}, "left_out": []}
    (folder / output.FILE_NAME).write_text(json.dumps(sealed))
    (folder / "output.sha256").write_bytes(MANIFEST)


times = st.integers(0, 4_000_000_000 * SECOND)
sizes = st.integers(0, 1 << 50)
words = st.text(max_size=50)
processes = st.builds(
    SeenProcess,
    pid=st.integers(1, 1 << 22),
    user=st.none() | words,
    command=st.none(),
    memory=st.none() | sizes,
    since=st.none() | times,
    job_id=st.none() | st.just("job_0000000a"),
)
snapshots = st.builds(
    Snapshot,
    seen_at=st.none() | times,
    gpus=st.lists(
        st.builds(
            SeenGpu,
            uuid=words,
            index=st.integers(0, 64),
            name=words,
            memory_total=sizes,
            memory_used=sizes,
            processes=st.lists(processes, max_size=2).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    foreign=st.lists(processes, max_size=2).map(tuple),
    xids=st.lists(
        st.builds(SeenXid, uuid=words, at=times, xid=st.integers(0, 200)), max_size=2
    ).map(tuple),
    oom_kills=st.none() | st.integers(0, 99),
    evidence=st.none() | words,
    stderr=st.lists(words, max_size=3).map(tuple),
)
endings = st.builds(
    Ending,
    finished_at=times,
    reason=st.sampled_from(Reason),
    cause=st.none() | st.sampled_from(Cause),
    snapshot=st.none() | snapshots,
    message=st.none() | st.text(max_size=200),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    user_us=st.integers(0, 1 << 50),
    system_us=st.integers(0, 1 << 50),
    max_rss=sizes,
    memory_peak=st.none() | sizes,
    progress=st.none() | st.integers(0, 100),
)


@given(endings, st.none() | times, st.lists(sizes, max_size=4))
def test_an_end_is_read_back_as_it_was_sealed(
    ending: Ending, started_at: int | None, found: list[int]
) -> None:
    with TemporaryDirectory() as folder:
        seal(Path(folder), build(JobState.FAILED, ending, started_at=started_at), found)
        described = (Path(folder) / output.FILE_NAME).stat().st_size
        read = output.read_sealed(Path(folder), 1)
    assert read is not None
    status, came, came_started_at = read
    assert (status, came_started_at) == (JobState.FAILED, started_at)
    sealed = {
        "results": ResultsState.KEPT,
        "digest": sha256(MANIFEST).hexdigest(),
        "result_bytes": sum(found) + described + len(MANIFEST),
        "result_files": len(found) + 2,
    }
    for name in Ending.__struct_fields__:
        expected = sealed.get(name, getattr(ending, name))
        assert getattr(came, name) == expected, name


def test_a_completed_end_has_no_reason(tmp_path: Path) -> None:
    seal(tmp_path, build(JobState.COMPLETED, Ending(3 * SECOND, exit_code=0)))
    read = output.read_sealed(tmp_path, 1)
    assert read is not None
    assert (read[0], read[1].reason, read[1].exit_code) == (JobState.COMPLETED, None, 0)


def test_it_says_what_was_asked_and_what_became_of_it() -> None:
    failed = Ending(
        5 * SECOND,
        Reason.EXIT,
        exit_code=3,
        user_us=1_500_000,
        max_rss=4096,
        memory_peak=8192,
    )
    told = build(JobState.FAILED, failed, attempt=2)
    assert json.loads(json.dumps(told)) == told
    assert told["command"] == ["python", {"b64": "/y5weQ=="}]
    assert told["cwd"] == {"b64": "L2hvbWUvYWRhL/8="}
    assert told["requested"]["priority"] == "high"
    assert told["requested"]["artifacts"] == ["*.pt"]
    assert (told["status"], told["reason"], told["exit_code"]) == ("failed", "exit", 3)
    assert told["resources"] == {
        "user_s": 1.5,
        "system_s": 0.0,
        "max_rss": 4096,
        "memory_peak": 8192,
    }
    assert (told["attempt"], told["user"], told["number"]) == (2, "ada", 7)
    assert [one["attempt"] for one in told["earlier_attempts"]] == [1]
    assert told["logs_kept_whole"] == ["stdout.log"]
    assert told["created_at"] == "1970-01-01T00:00:01.000000Z"


def test_values_of_the_environment_are_not_in_it() -> None:
    told = json.dumps(build(JobState.COMPLETED, Ending(3 * SECOND, exit_code=0)))
    assert "SECRET" in told
    assert "hidden" not in told


def test_no_package_and_another_attempts_package_say_nothing(tmp_path: Path) -> None:
    assert output.read_sealed(tmp_path / "none", 1) is None
    seal(tmp_path, build(JobState.COMPLETED, Ending(3 * SECOND, exit_code=0), attempt=2))
    assert output.read_sealed(tmp_path, 1) is None
    assert output.read_sealed(tmp_path, 2) is not None


def replaced(name: str, value: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / output.FILE_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


def without(name: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / output.FILE_NAME
        document = json.loads(path.read_text())
        del document[name]
        path.write_text(json.dumps(document))

    return change


def written(text: bytes) -> Change:
    return lambda folder: (folder / output.FILE_NAME).write_bytes(text)


def fifo(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def link(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).rename(folder / "moved")
        (folder / name).symlink_to("moved")

    return change


CHANGES = {
    "gone": lambda folder: (folder / output.FILE_NAME).unlink(),
    "no manifest": lambda folder: (folder / "output.sha256").unlink(),
    "a fifo": fifo(output.FILE_NAME),
    "a fifo as manifest": fifo("output.sha256"),
    "a link": link(output.FILE_NAME),
    "empty": written(b""),
    "no JSON": written(b"{"),
    "no UTF-8": written(b'"\xff"'),
    "a list": written(b"[]"),
    "deep": written(b"[" * 100_000),
    "no attempt": without("attempt"),
    "no status": without("status"),
    "another status": replaced("status", "running"),
    "an unknown status": replaced("status", "great"),
    "a reason for completed": replaced("reason", "exit"),
    "an unknown reason": replaced("reason", "weather"),
    "no resources": replaced("resources", None),
    "negative resources": replaced("resources", {"user_s": -1, "system_s": 0, "max_rss": 0}),
    "infinite resources": replaced(
        "resources", {"user_s": float("inf"), "system_s": 0, "max_rss": 0}
    ),
    "a huge exit code": replaced("exit_code", 1 << 70),
    "no number": replaced("exit_code", "0"),
    "true": replaced("progress", True),
    "a time without zone": replaced("finished_at", "2026-01-01T00:00:00"),
    "a time long ago": replaced("finished_at", "0001-01-01T00:00:00Z"),
    "a time far off": replaced("finished_at", "9999-01-01T00:00:00Z"),
    "no time": replaced("finished_at", None),
    "a start that is no time": replaced("started_at", 7),
    "long words": replaced("message", "x" * 100_000),
    "words that are a list": replaced("message", ["x"]),
    "sizes that are none": replaced("files", [{"size": -1}]),
    "files that are none": replaced("files", 3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_was_changed_is_not_believed(tmp_path: Path, change: Change) -> None:
    seal(tmp_path, build(JobState.COMPLETED, Ending(3 * SECOND, exit_code=0)))
    change(tmp_path)
    read = output.read_sealed(tmp_path, 1)
    assert read is not None
    status, ending, started_at = read
    assert (status, ending.reason, started_at) == (JobState.FAILED, Reason.LOST, None)
    assert ending.message == "its results were changed before its end was recorded"
    assert ending.digest is None
    assert ending.results is ResultsState.KEPT
