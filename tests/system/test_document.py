"""The job lifecycle document, followed to the letter: each line and program, as it stands there.

Its reader is a user without privileges, in an empty directory, without a terminal, at a daemon of
root's or at one of his own. Only the placeholders are filled in. ``promises`` names the sentences
that a test keeps; the last test compares them with the document.
"""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

import pytest

from aitbcd.lifecycle import TRANSITIONS
from aitbcd.model import JobState
from tests.integration.conftest import User, as_user, new_user
from tests.service import DEADLINE_S, PROGRAMS, Service, descendants, end_ours, wait_for
from tests.system import lifecycle
from tests.system.conftest import Gate

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make users and be them"),
]

Json = dict[str, Any]
Test = TypeVar("Test", bound=Callable[..., None])

#: A core costs one unit of money in ten seconds.
CONFIG = """
[server]
tcp = "127.0.0.1:0"
contact = "Grace in room 12"
[slots]
cpus = 2
[jobs]
cancel_grace = "1s"
[pricing]
cpu_hour = 360
currency = "EUR"
[plans.brief]
retention = "1s"
"""

_kept: set[str] = set()


def promises(*sentences: str) -> Callable[[Test], Test]:
    """Name the sentences of the document that a test keeps."""
    _kept.update(sentences)

    def same(test: Test) -> Test:
        return test

    return same


class Reader:
    """Who follows the document, with an empty directory."""

    def __init__(self, service: Service, user: User, folder: Path, port: int, key: str) -> None:
        self.service = service
        self.user = user
        self.folder = folder
        self._port = port
        self._key = key
        self._started: list[subprocess.Popen[str]] = []

    @property
    def _environ(self) -> dict[str, str]:
        return {
            "HOME": str(self.user.home),
            "USER": self.user.name,
            "LOGNAME": self.user.name,
            "LANG": "C.UTF-8",
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            # He sees what a program prints when it prints it, as on a terminal.
            "PYTHONUNBUFFERED": "1",
            "AITBC_SOCKET": str(self.service.socket),
        }

    def filled_in(self, text: str, job: str = "") -> str:
        """Return what is typed: the text of the document without its placeholders."""
        filled = text.replace("<JOB_ID>", job).replace("{job_id}", job)
        return filled.replace("your-key", self._key).replace(
            "localhost:8000", f"localhost:{self._port}"
        )

    def start(self, snippet: lifecycle.Snippet, job: str = "") -> subprocess.Popen[str]:
        """Type it, and leave it running."""
        text = self.filled_in(snippet.text, job)
        started = subprocess.Popen(
            [
                *as_user(self.user),
                *(["python", "-c"] if snippet.is_program else ["sh", "-c"]),
                text,
            ],
            env=self._environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(started)
        return started

    def type(self, snippet: lifecycle.Snippet, job: str = "", code: int = 0) -> str:
        """Type it, and return what is printed; fail unless it ends with ``code``."""
        started = self.start(snippet, job)
        said, problem = started.communicate(timeout=DEADLINE_S)
        assert started.returncode == code, f"{snippet.text}\n{said}\n{problem}"
        assert "Traceback" not in problem
        return said

    def line(self, text: str, job: str = "", code: int = 0) -> str:
        """Type a line that is not in the document."""
        return self.type(lifecycle.Snippet(False, text), job, code)

    def submit(self, line: str, **more: object) -> str:
        """Submit a shell line to be run in his directory; return the job's id."""
        job = {"command": line, "cwd": str(self.folder), **more}
        answer = self.user.ask(self.service.socket, "POST", "/v1/jobs", job)
        assert answer.status == 201, answer.body
        job_id: str = answer.json["job_id"]
        return job_id

    def status(self, job: str, *, detail: bool = False) -> Json:
        path = f"/v1/jobs/{job}" + ("?detail=true" if detail else "")
        answer = self.user.ask(self.service.socket, "GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    def until(self, job: str, status: str) -> Json:
        def reached() -> Json | None:
            found = self.status(job)
            return found if found["status"] == status else None

        return wait_for(f"{job} is {status}", reached, log=self.service.log)

    def ended(self, line: str, status: str = "completed", **more: object) -> str:
        """Submit a job and return its id when it is over."""
        job = self.submit(line, **more)
        self.until(job, status)
        return job

    def close(self) -> None:
        for started in self._started:
            started.kill()
            started.wait()
            for pipe in (started.stdout, started.stderr):
                if pipe is not None:
                    pipe.close()


class Page:
    """The lines and programs of one page, in their order."""

    def __init__(self, number: int) -> None:
        self._rest = list(lifecycle.snippets(number))

    def next(self, words: str) -> lifecycle.Snippet:
        """Return the next one, which has these words."""
        snippet = self._rest.pop(0)
        assert words in snippet.text, f"{words!r} is not in what comes next: {snippet.text!r}"
        return snippet

    def end(self) -> None:
        assert self._rest == []


@pytest.fixture(scope="module")
def reading() -> Iterator[User]:
    with new_user("r") as user:
        yield user


@pytest.fixture(scope="module", params=["root", "own"])
def place(request: pytest.FixtureRequest, reading: User) -> Iterator[tuple[Service, int]]:
    """A daemon of root's, or of the reader's own, and its port."""
    with tempfile.TemporaryDirectory(prefix="aitbcd-document-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        is_own = request.param == "own"
        service = Service(
            Path(folder) / "daemon", CONFIG, before=as_user(reading) if is_own else ()
        )
        service.socket.parent.chmod(0o755)
        if is_own:
            service.give_to(reading.uid, reading.gid)
        stack.enter_context(service)
        said = wait_for(
            "the daemon says its port",
            lambda: re.search(r"http://127\.0\.0\.1:(\d+)", service.log.read_text()),
            log=service.log,
        )
        yield service, int(said[1])


def key_of(user: User, service: Service, **more: object) -> str:
    """Make an API key and return its secret."""
    asked = {"name": f"document-{time.monotonic_ns()}", **more}
    answer = user.ask(service.socket, "POST", "/v1/keys", asked)
    assert answer.status == 201, answer.body
    key: str = answer.json["key"]
    return key


@pytest.fixture
def reader(place: tuple[Service, int], reading: User) -> Iterator[Reader]:
    service, port = place
    with tempfile.TemporaryDirectory(prefix="aitbcd-reader-") as folder:
        os.chown(folder, reading.uid, reading.gid)
        made = Reader(service, reading, Path(folder), port, key_of(reading, service))
        yield made
        made.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Holds back jobs of any user."""
    with tempfile.TemporaryDirectory(prefix="aitbcd-gate-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "gate"
        made = Gate(path)
        path.chmod(0o666)
        yield made
        made.open(1000)
        made.close()


def lines_of(running: subprocess.Popen[str]) -> list[str]:
    """Return a list that grows by what a program prints."""
    found: list[str] = []

    def read() -> None:
        assert running.stdout is not None
        found.extend(running.stdout)

    threading.Thread(target=read, daemon=True).start()
    return found


# -- Job Status Guide ---------------------------------------------------------------------------


@promises("Understand job states and how to track progress.")
def test_the_status_guide(reader: Reader, gate: Gate) -> None:
    page = Page(lifecycle.STATUS)
    job = reader.submit(f'echo 45 > "$AITBC_PROGRESS"; {gate.wait}', name="resnet")
    reader.until(job, "running")
    wait_for("its progress is told", lambda: reader.status(job)["progress"] == 45)

    shown = reader.type(page.next("aitbc client status"), job)
    for word in (job, "running", "45"):
        assert word in shown

    printed = ast.literal_eval(reader.type(page.next("requests.get"), job))
    example = json.loads(lifecycle.block(lifecycle.STATUS, "Status Response Example"))
    assert list(printed)[: len(example)] == list(example)
    assert {name: type(printed[name]) for name in example} == {
        name: type(value) for name, value in example.items()
    }
    assert (printed["job_id"], printed["status"], printed["progress"]) == (job, "running", 45)
    assert re.fullmatch(r"job_\w+", printed["job_id"])
    assert re.fullmatch(r"miner_\w+", printed["miner_id"])
    for name in ("created_at", "started_at", "estimated_completion"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", printed[name])
    assert printed["created_at"] <= printed["started_at"] <= printed["estimated_completion"]

    watch = reader.start(page.next("aitbc client watch"), job)
    watched = lines_of(watch)
    wait_for("watch shows that it runs", lambda: any("running" in line for line in watched))

    socket = reader.start(page.next("websocket.WebSocketApp"))
    messages = lines_of(socket)

    def knock() -> bool:
        # Only what happens from now on is told, and nothing says that it is connected.
        reader.ended("true", name="knock")
        return bool(messages)

    wait_for("the program prints a message", knock)
    gate.open()
    assert watch.wait(DEADLINE_S) == 0
    assert any("completed" in line for line in watched)

    told = [json.loads(line) for line in wait_for_message(messages, job, "completed")]
    ours = [message for message in told if message["job_id"] == job and "seq" in message]
    assert [message["status"] for message in ours] == ["completed"]
    next_job = reader.ended("true")
    told = [json.loads(line) for line in wait_for_message(messages, next_job, "completed")]
    steps = [message for message in told if message["job_id"] == next_job and "seq" in message]
    assert [step["status"] for step in steps] == ["pending", "assigned", "running", "completed"]
    assert all({"job_id", "status", "progress", "seq", "time"} <= step.keys() for step in steps)
    seqs = [message["seq"] for message in told if "seq" in message]
    assert seqs == sorted(set(seqs))
    assert socket.poll() is None, "it runs for ever"
    page.end()


def wait_for_message(messages: list[str], job: str, status: str) -> list[str]:
    """Return the messages printed when one tells that a job has reached a state."""

    def printed() -> bool:
        return any(
            (said["job_id"], said["status"]) == (job, status)
            for said in map(json.loads, list(messages))
        )

    wait_for(f"a message says that {job} is {status}", printed)
    return list(messages)


@promises("pending | Job queued, waiting for miner | Wait")
def test_a_pending_job_waits_for_its_turn_and_gets_it(reader: Reader, gate: Gate) -> None:
    before = reader.submit(gate.wait, cpus=2)
    reader.until(before, "running")
    job = reader.submit("true")
    status = reader.status(job)
    assert (status["status"], status["miner_id"]) == ("pending", None)
    assert status["waiting"]
    assert status["waiting"] in reader.line("aitbc client status --job-id <JOB_ID>", job)
    gate.open()
    reader.until(job, "completed")


def of_launcher(service: Service) -> list[int]:
    """Return the launcher of a daemon, and its supervisors."""
    found = []
    for pid in descendants(os.getpid()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"launcher" in command and os.fsencode(service.state) in command:
            found.append(pid)
    assert found
    return found


@promises("assigned | Miner assigned, starting soon | Wait")
def test_an_assigned_job_has_its_miner_and_starts(reader: Reader) -> None:
    stopped = of_launcher(reader.service)
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        job = reader.submit("true")
        status = reader.until(job, "assigned")
        assert re.fullmatch(r"miner_\w+", status["miner_id"])
        assert status["started_at"] is None
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert reader.until(job, "completed")["started_at"]


@promises("running | Job executing | Monitor", "Execution logs")
def test_a_running_job_can_be_monitored(reader: Reader, gate: Gate) -> None:
    job = reader.submit(f"echo first; echo wrong >&2; {gate.wait}; echo last")
    reader.until(job, "running")
    wait_for("it has written", lambda: "first\n" in reader.line(f"aitbcctl logs {job}"))
    gate.open()
    status = reader.until(job, "completed")
    logs = Path(status["result_path"]) / "logs"
    assert (logs / "stdout.log").read_text() == "first\nlast\n"
    assert (logs / "stderr.log").read_text() == "wrong\n"


@promises("completed | Job finished successfully | Download", "Job metadata and status",
          "Main output")  # fmt: skip
def test_a_completed_job_can_be_downloaded_and_no_other(reader: Reader, gate: Gate) -> None:
    job = reader.submit(f"{gate.wait}; echo 42")
    line = "aitbc client download --job-id <JOB_ID> --output ./results"
    reader.line(line, job, code=4)
    assert list(reader.folder.iterdir()) == []
    gate.open()
    reader.until(job, "completed")
    reader.line(line, job)
    folder = reader.folder / "results" / job
    assert (folder / "result.txt").read_text() == "42\n"
    output = json.loads((folder / "output.json").read_text())
    assert (output["job_id"], output["status"], output["exit_code"]) == (job, "completed", 0)


@promises("failed | Job error occurred | Retry/Contact")
def test_a_failed_job_can_be_retried_and_says_whom_to_contact(reader: Reader) -> None:
    job = reader.ended("echo no such data >&2; test -e mended", "failed")
    shown = reader.line("aitbc client status --job-id <JOB_ID>", job)
    assert "Grace in room 12" in shown
    assert reader.status(job)["contact"] == "Grace in room 12"
    assert (reader.status(job)["reason"], reader.status(job)["exit_code"]) == ("exit", 1)
    (reader.folder / "mended").touch()
    again = reader.line("aitbc client retry --job-id <JOB_ID>", job)
    named = re.search(r"job_\w+", again)
    assert named
    assert named[0] != job
    assert reader.until(named[0], "completed")["retry_of"] == job


@promises("canceled | Job cancelled by user | None")
def test_nothing_more_can_be_done_to_a_canceled_job(reader: Reader) -> None:
    job = reader.submit("exec sleep 1000")
    reader.until(job, "running")
    reader.line("aitbc client cancel --job-id <JOB_ID>", job)
    assert reader.status(job)["reason"] == "canceled"
    reader.line("aitbc client cancel --job-id <JOB_ID>", job, code=4)
    assert reader.status(job)["status"] == "canceled"


def test_the_states_and_their_transitions_are_those_of_the_diagram() -> None:
    diagram = lifecycle.block(lifecycle.STATUS, "State Transitions")
    first, *rest = [line for line in diagram.splitlines() if "↓" not in line]
    path = [JobState(word.strip()) for word in first.split("→")]
    for here, there in itertools.pairwise(path):
        assert there in TRANSITIONS[here].values(), f"{here} -> {there}"
    ways_out = [{JobState(word) for word in line.split()} for line in rest]
    assert ways_out == [{JobState.FAILED}, {JobState.CANCELED}]
    for here in path[:-1]:
        assert JobState.FAILED in TRANSITIONS[here].values()
        # A started one is ended first, which the page on cancellation calls canceling.
        ways = TRANSITIONS[here].values()
        assert JobState.CANCELED in ways or JobState.CANCELING in ways
    named = {JobState(row[0]) for row in lifecycle.table(lifecycle.STATUS, "Job States")}
    assert named | {JobState.CANCELING} == set(JobState)
    for final in (path[-1], JobState.FAILED, JobState.CANCELED):
        assert not TRANSITIONS[final]


def test_jobs_can_be_canceled_in_each_state_that_is_not_final(reader: Reader, gate: Gate) -> None:
    running = reader.submit(gate.wait, cpus=2)
    reader.until(running, "running")
    pending = reader.submit("true")
    reader.line("aitbc client cancel --job-id <JOB_ID>", pending)
    assert reader.status(pending)["status"] == "canceled"
    reader.line("aitbc client cancel --job-id <JOB_ID>", running)
    assert reader.status(running)["status"] == "canceled"
    failed = reader.ended("true", "failed", cwd="/no/such/place")
    steps = [event["status"] for event in reader.status(failed, detail=True)["events"]]
    assert steps == ["pending", "assigned", "failed"]


# -- results ------------------------------------------------------------------------------------

TRAINING = """
mkdir -p "$AITBC_ARTIFACTS_DIR"
head -c 1000000 /dev/zero | tr '\\0' w > "$AITBC_ARTIFACTS_DIR/model.bin"
echo '{"accuracy": 0.97}' > "$AITBC_ARTIFACTS_DIR/metrics.json"
echo trained
echo warning >&2
"""


def paths_of_the_tree() -> list[str]:
    """Return the files of the document's package, relative to its folder."""
    folders: list[str] = []
    found = []
    for line in lifecycle.block(lifecycle.RESULTS, "A typical result package").splitlines()[1:]:
        depth = line.index("── ") // 4
        name = line.split("── ")[1].split("#")[0].strip()
        folders[depth:] = [name.rstrip("/")]
        if not name.endswith("/"):
            found.append("/".join(folders))
    assert len(found) == 5
    return found


@promises(
    "Learn how to download and manage job results.",
    "Results are stored after job completion. This guide covers downloading and managing outputs.",
    "A typical result package includes:",
    "Model files, etc.",
    "Download checksum file",
    "Verify",
)
def test_the_guide_to_results(reader: Reader) -> None:
    page = Page(lifecycle.RESULTS)
    job = reader.ended(TRAINING)
    kept = Path(reader.status(job)["result_path"])
    paths = paths_of_the_tree()

    reader.type(page.next("download --job-id <JOB_ID> --output ./results"), job)
    assert [path.name for path in reader.folder.iterdir()] == ["results"]
    assert [path.name for path in (reader.folder / "results").iterdir()] == [job]
    files = {path: (reader.folder / "results" / job / path).read_bytes() for path in paths}
    assert files["artifacts/model.bin"] == b"w" * 1_000_000
    assert files["result.txt"] == files["logs/stdout.log"] == b"trained\n"
    assert files["logs/stderr.log"] == b"warning\n"
    assert json.loads(files["output.json"])["status"] == "completed"

    reader.type(page.next("/download"), job)
    with zipfile.ZipFile(reader.folder / "output.zip") as archive:
        assert archive.testzip() is None
        assert {path: archive.read(f"{job}/{path}") for path in paths} == files
        assert f"{job}/output.sha256" in archive.namelist()

    for more, days in (("", 7), (" --expires 7d", 7)):
        snippet = page.next(f"aitbc client share --job-id <JOB_ID>{more}")
        assert snippet.text.endswith(f"<JOB_ID>{more}")
        said = reader.type(snippet, job)
        link = re.search(r"http://\S+/s/\S+", said)
        assert link, said
        with urllib.request.urlopen(link[0], timeout=DEADLINE_S) as answer:
            shared = io.BytesIO(answer.read())
        with zipfile.ZipFile(shared) as archive:
            assert archive.read(f"{job}/artifacts/model.bin") == files["artifacts/model.bin"]
        assert expiry_of_the_last_share(reader, job) <= days * 86400

    assert "verified" in reader.type(page.next("aitbc client verify"), job)

    reader.type(page.next("--checksum"), job)
    checked = reader.type(page.next("sha256sum -c"))
    listed = (reader.folder / "output.sha256").read_text().splitlines()
    assert {line.split(maxsplit=1)[1].lstrip("*") for line in listed} >= {
        f"{job}/{path}" for path in paths
    }
    assert len(checked.splitlines()) == len(listed)
    assert all(line.endswith(": OK") for line in checked.splitlines())

    reader.type(page.next("aitbc client delete"), job)
    assert not kept.exists()
    reader.line("aitbc client status --job-id <JOB_ID>", job, code=3)
    assert job not in reader.line("aitbc client list")
    page.end()


def expiry_of_the_last_share(reader: Reader, job: str) -> float:
    """Return in how many seconds, at most, the newest link to a job expires."""
    answer = reader.user.ask(reader.service.socket, "GET", f"/v1/jobs/{job}/shares")
    assert answer.status == 200, answer.body
    newest = max(answer.json["shares"], key=lambda share: share["created_at"])
    made, ends = (datetime.fromisoformat(newest[name]) for name in ("created_at", "expires_at"))
    assert ends > made
    return (ends - made).total_seconds()


@promises(
    "JSON | .json | Structured data output",
    "Text | .txt | Plain text output",
    "Binary | .bin | Model weights, tensors",
    "Archive | .zip | Multiple files",
)
def test_results_have_the_formats_of_the_table(reader: Reader) -> None:
    job = reader.ended(TRAINING)
    http = reader.user.ask(reader.service.socket, "GET", f"/v1/jobs/{job}/result")
    assert http.headers["content-type"].startswith("application/json")
    assert http.json["job_id"] == job
    text = reader.user.ask(reader.service.socket, "GET", f"/v1/jobs/{job}/files/result.txt")
    assert text.headers["content-type"].startswith("text/plain")
    assert text.body == b"trained\n"
    model = f"/v1/jobs/{job}/files/artifacts/model.bin"
    assert reader.user.ask(reader.service.socket, "GET", model).body == b"w" * 1_000_000
    reader.line("aitbc client download --job-id <JOB_ID> --format zip", job)
    (archive,) = reader.folder.glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        assert len(opened.namelist()) > 5
    suffixes = {row[1] for row in lifecycle.table(lifecycle.RESULTS, "Result Formats")}
    assert suffixes == {".json", ".txt", ".bin", ".zip"}


@promises("Free | 7 days", "Pro | 30 days", "Enterprise | 90 days")
def test_results_are_kept_as_long_as_the_plan_says(
    reader: Reader, place: tuple[Service, int]
) -> None:
    service, port = place
    for plan, words in lifecycle.table(lifecycle.RESULTS, "Result Retention"):
        days = int(words.split()[0])
        status = ended_with_plan(reader, service, port, plan.lower())
        finished, expires = (
            datetime.fromisoformat(status[name]) for name in ("finished_at", "expires_at")
        )
        assert abs(expires - finished - timedelta(days=days)) <= timedelta(seconds=1)
        assert status["results"] == "kept"


def test_results_whose_time_is_over_are_gone_and_that_is_said(
    reader: Reader, place: tuple[Service, int]
) -> None:
    service, port = place
    status = ended_with_plan(reader, service, port, "brief")
    admin = daemons_user(reader, service)

    def expired() -> bool:
        answer = admin.ask(service.socket, "GET", f"/v1/jobs/{status['job_id']}")
        return bool(answer.json["results"] == "expired")

    wait_for("the results expire", expired, log=service.log)
    answer = admin.ask(service.socket, "GET", f"/v1/jobs/{status['job_id']}/download")
    assert (answer.status, answer.json["code"]) == (409, "no-results")
    assert "expired" in answer.json["detail"]
    path = service.state / "results" / status["job_id"]
    assert wait_for("their folder is gone", lambda: not path.exists())


def daemons_user(reader: Reader, service: Service) -> User:
    """Return whom the daemon belongs to, who may give plans to keys."""
    owner = (service.state / "queue.db").stat()
    is_readers = owner.st_uid == reader.user.uid
    return reader.user if is_readers else User("root", 0, 0, Path("/root"))


def ended_with_plan(reader: Reader, service: Service, port: int, plan: str) -> Json:
    """Return the status of a job that a key with this plan submitted, when it is over."""
    admin = daemons_user(reader, service)
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/jobs",
        data=b'{"command": "echo x"}',
        headers={"X-Api-Key": key_of(admin, service, plan=plan)},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        job = json.load(answer)["job_id"]

    def over() -> Json | None:
        status = admin.ask(service.socket, "GET", f"/v1/jobs/{job}").json
        return status if "finished_at" in status else None

    return wait_for("it is over", over, log=service.log)


# -- history ------------------------------------------------------------------------------------


@promises(
    "View and manage your past jobs.",
    "Running jobs",
    "Completed jobs",
    "Failed jobs",
    "Last 7 days",
    "Specific date range",
    "Export to JSON",
    "Export to CSV",
    "Shows:",
    "Total jobs submitted",
    "Success rate",
    "Average completion time",
    "Total spent",
)
def test_the_guide_to_history(reader: Reader, gate: Gate) -> None:
    page = Page(lifecycle.HISTORY)
    completed = reader.ended("echo done", name="=1+1")
    failed = reader.ended("false", "failed")
    running = reader.submit(gate.wait)
    reader.until(running, "running")
    ours = {completed, failed, running}

    assert ours <= named_in(reader.type(page.next("aitbc client list")))
    for status, job in (("running", running), ("completed", completed), ("failed", failed)):
        listed = named_in(reader.type(page.next(f"list --status {status}")))
        assert listed & ours == {job}
    assert ours <= named_in(reader.type(page.next("list --days 7")))
    assert named_in(reader.type(page.next("list --from 2026-01-01 --to 2026-01-31"))) == set()

    shown = reader.type(page.next("aitbc client get"), completed)
    package = reader.status(completed)["result_path"]
    for word in (completed, "completed", "echo done", package, "result.txt"):
        assert word in shown

    reader.type(page.next("export --format json"))
    exported = json.loads((reader.folder / "jobs.json").read_text())
    by_id = {job["job_id"]: job for job in exported}
    assert by_id[failed]["status"] == "failed"
    assert by_id[running]["status"] == "running"

    reader.type(page.next("export --format csv"))
    with (reader.folder / "jobs.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header[0] == "job_id"
    assert {row[0] for row in rows} == set(by_id)
    (row,) = [row for row in rows if row[0] == completed]
    assert row[header.index("name")] == "'=1+1", "a spreadsheet would compute it"

    shown = reader.type(page.next("aitbc client stats"))
    total = reader.user.ask(reader.service.socket, "GET", "/v1/stats").json["total"]
    assert total["submitted"] >= len(by_id)
    for label in ("Total jobs submitted", "Success rate", "Average completion time", "Total spent"):
        assert label.lower() in shown.lower()
    found = re.search(r"Total jobs submitted\W*([\d,]+)", shown, re.I)
    assert found
    assert int(found[1].replace(",", "")) == total["submitted"]
    rate = total["completed"] / (total["completed"] + total["failed"])
    assert total["success_rate"] == pytest.approx(rate)
    assert total["spent"] > 0
    page.end()


def named_in(text: str) -> set[str]:
    return set(re.findall(r"job_\w+", text))


def test_a_date_range_is_of_the_readers_zone_and_includes_both_its_days(reader: Reader) -> None:
    zone = timezone(timedelta(hours=14))
    first = datetime.now(zone).date()
    job = reader.ended("true")
    last = datetime.now(zone).date()
    here = "TZ=FAR-14 aitbc client list"
    assert job in reader.line(f"{here} --from {first} --to {last}")
    assert job not in reader.line(f"{here} --to {first - timedelta(days=1)}")
    assert job not in reader.line(f"{here} --from {last + timedelta(days=1)}")


# -- cancellation -------------------------------------------------------------------------------

STUBBORN = 'trap "" TERM; echo $$ > pid; echo half; while :; do sleep 0.1; done'


@promises(
    "How to cancel jobs and manage running operations.",
    "canceled | Job successfully canceled",
    "Job stops immediately",
    "Partial results may be available",
    "Charges apply for resources used",
)
def test_the_guide_to_cancellation(reader: Reader) -> None:
    page = Page(lifecycle.CANCEL)
    for words in ("aitbc client cancel --job-id <JOB_ID>", "--force"):
        job = reader.submit("echo $$ > pid; echo half; exec sleep 1000")
        pid = int(wait_for("it runs", (reader.folder / "pid").exists) and pid_of(reader))
        said = reader.type(page.next(words), job)
        assert "canceled" in said
        assert not Path(f"/proc/{pid}").exists()
        status = reader.status(job)
        assert status["status"] == "canceled"
        assert status["charge"] > 0
        assert status["currency"] == "EUR"
        folder = reader.folder / "partial" / job
        reader.line("aitbc client download --job-id <JOB_ID> --output partial", job)
        assert (folder / "result.txt").read_text() == "half\n"
        (reader.folder / "pid").unlink()
    page.end()


def pid_of(reader: Reader) -> str:
    path = reader.folder / "pid"
    return wait_for("it has written its pid", lambda: path.read_text().strip())


@promises("canceling | Cancellation requested")
def test_a_job_that_does_not_end_at_once_is_canceling(reader: Reader) -> None:
    job = reader.submit(STUBBORN)
    pid = int(wait_for("it runs", (reader.folder / "pid").exists) and pid_of(reader))
    answer = reader.user.ask(reader.service.socket, "POST", f"/v1/jobs/{job}/cancel")
    assert answer.json["status"] == "canceling"
    assert reader.until(job, "canceled")["reason"] == "canceled"
    assert not Path(f"/proc/{pid}").exists()


@promises("failed | Cancellation failed")
# Root's supervisor can end anything.
@pytest.mark.parametrize("place", ["own"], indirect=True)
def test_a_cancellation_that_fails_says_what_would_not_die(reader: Reader) -> None:
    # A program that becomes root is out of the reach of whoever started it.
    program = reader.folder / "become"
    program.write_bytes(Path("/usr/bin/setpriv").read_bytes())
    program.chmod(0o4755)
    job = reader.submit("echo $$ > pid; exec ./become --reuid 0 sleep 1000")
    pid = int(wait_for("it runs", (reader.folder / "pid").exists) and pid_of(reader))
    try:
        wait_for("it is root's", lambda: Path(f"/proc/{pid}").stat().st_uid == 0)
        said = reader.line("aitbc client cancel --job-id <JOB_ID> --force 2>&1", job, code=1)
        status = reader.until(job, "failed")
        assert status["reason"] == "cancellation_failed"
        assert str(pid) in status["message"]
        assert str(pid) in said
    finally:
        os.kill(pid, signal.SIGKILL)
        end_ours(str(reader.folder))


# -- the document itself ------------------------------------------------------------------------


def test_each_sentence_of_the_document_has_a_test() -> None:
    assert lifecycle.sentences() == _kept
