"""``gpus test``: a job on each GPU that tests it with torch, and what becomes of one that fails.

What is tested, and how it is judged, is ``selftest/devices.py``, which runs within the job; here it
is submitted, followed, and read. A GPU that fails is drained where the caller may do that.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import aitbcctl
from aitbcctl import devices, following, options, submission
from aitbcctl.client import Client, Json, job_path, quote
from aitbcctl.refusals import Refused, Usage
from aitbcctl.render import LogCleaner, ending, plain
from aitbcctl.terminal import flush, put, put_json, say
from aitbcd.errors import AitbcError, NoResults, NoSuchFile

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(aitbcctl.__file__)), "selftest", "devices.py")
#: A test takes a minute; one that hangs is a fault too.
TIMEOUT = "30m"
_TESTABLE = ("free", "busy", "foreign")
_REPORT = ("artifacts", "gpus-test.json")
#: What a table of results may be long at most, and the reason for a drain.
_TABLE_MAX, _REASON_MAX = 64 << 10, 200


def run(
    words: Sequence[str],
    python: str | None,
    *,
    is_waited_for: bool,
    is_drained: bool,
    as_json: bool,
) -> int:
    """Test GPUs, or the processor where there is none, and return the exit code.

    Raises:
        Refused: a GPU could not be tested.
    """
    client = options.client()
    inventory = client.get("/v1/gpus")
    gpus = _chosen(inventory, words)
    python = _interpreter(python)
    if not gpus:
        why = f" ({plain(inventory['problem'])})" if inventory["problem"] else ""
        say(f"no GPUs here{why}: the processor is tested")
    sets = [[gpu] for gpu in gpus] or [[]]
    jobs = _submit(client, python, sets)
    for tested, job in zip(sets, jobs):
        _tell_what_it_waits_for(client, tested, job)
    if not is_waited_for:
        put_json({"jobs": jobs}) if as_json else put("\n".join(job["job_id"] for job in jobs))
        return 0
    outcomes = [
        _finish(client, tested, job, is_drained=is_drained, is_shown=not as_json)
        for tested, job in zip(sets, jobs)
    ]
    good = [gpu for outcome in outcomes for gpu in outcome.gpus if outcome.verdict == "good"]
    # Nobody is kept waiting for all of them at once.
    if len(good) > 1 and all(gpu["state"] == "free" for gpu in good):
        [between] = _submit(client, python, [good])
        outcomes += [_finish(client, good, between, is_drained=False, is_shown=not as_json)]
    if as_json:
        put_json({"tests": [_as_json(outcome) for outcome in outcomes]})
    if any(outcome.verdict == "failed" or outcome.report is None for outcome in outcomes):
        return 1
    for outcome in outcomes:
        if outcome.verdict == "untested":
            raise Refused(plain(outcome.message))
    return 0


class Outcome(NamedTuple):
    """A test that is over."""

    gpus: list[Json]
    job: Json
    #: What the job found; None where it did not come to that.
    report: Json | None

    @property
    def verdict(self) -> str:
        """``good``, ``failed`` or ``untested``."""
        return str(self.report["verdict"]) if self.report else "untested"

    @property
    def message(self) -> str:
        return str(self.report["message"]) if self.report else ending(self.job)


def _chosen(inventory: Json, words: Sequence[str]) -> list[Json]:
    """Return the GPUs to test: those that are named, else all that can be; say which cannot.

    Raises:
        Refused: one that was named, or every one, can take no job.
        NoSuchFile, AmbiguousJob: none or several are meant.
    """
    if words:
        found = [devices.named_gpu(inventory["gpus"], word) for word in words]
        named = {gpu["uuid"]: gpu for gpu in found}
        for gpu in named.values():
            if gpu["state"] not in _TESTABLE:
                raise _not_testable(gpu)
        return list(named.values())
    found = [gpu for gpu in inventory["gpus"] if gpu["state"] in _TESTABLE]
    # Nobody waits for one to see what came of the others.
    found.sort(key=lambda gpu: bool(gpu["state"] != "free"))
    others = [gpu for gpu in inventory["gpus"] if gpu not in found]
    if others and not found:
        raise _not_testable(others[0])
    for gpu in others:
        say(f"not tested: {_not_testable(gpu).detail}")
    return found


def _not_testable(gpu: Json) -> Refused:
    about = f"{devices.title(gpu)} is {gpu['state']}" + (
        f": {plain(gpu['reason'])}" if gpu["reason"] else ""
    )
    hint = f"take it back first: aitbcctl gpus resume {plain(gpu['uuid'])}"
    return Refused(about, hint=hint if gpu["state"] == "drained" else None)


def _interpreter(path: str | None) -> str:
    """Return the Python to test with.

    Raises:
        Usage: it cannot be run.
        Refused: it has no torch.
    """
    python = sys.executable if path is None else os.path.abspath(shutil.which(path) or path)
    if os.environ.get("AITBC_URL") and not os.environ.get("AITBC_SOCKET"):
        return python  # of the daemon's machine, which can be another one
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    try:
        code = subprocess.run([python, "-c", look], cwd="/", capture_output=True).returncode
    except OSError as error:
        raise Usage(f"--python {path} cannot be run: {error.strerror}") from None
    if code:
        package = "torch" if path else "aitbcd[torch]"
        command = shlex.join([python, "-m", "pip", "install", package])
        raise Refused(f"{python} has no torch, which the test needs: {command}")
    return python


def _submit(client: Client, python: str, sets: Sequence[Sequence[Json]]) -> list[Json]:
    """Submit a job for each set of GPUs, all or none, and return their statuses."""
    defaults = submission.describe([python, SCRIPT], name="gpus-test", cwd="/", timeout=TIMEOUT)
    jobs = [{"gpu": [gpu["uuid"] for gpu in gpus]} if gpus else {} for gpus in sets]
    body = json.dumps({"defaults": defaults, "jobs": jobs}).encode()
    submitted: list[Json] = client.post("/v1/jobs:batch", body)["jobs"]
    return submitted


def _tell_what_it_waits_for(client: Client, gpus: Sequence[Json], job: Json) -> None:
    """Say of a test that cannot start yet for whom it waits, and what to do about it."""
    taken = [gpu for gpu in gpus if gpu["state"] != "free"]
    waiting = client.get(job_path(job["job_id"]))["waiting"] if taken else None
    if waiting is None or not any(gpu["reason"] or gpu["jobs"] for gpu in taken):
        return
    say(f"{job['job_id']} tests {', '.join(map(devices.title, gpus))} and {plain(waiting)};")
    if any(gpu["state"] == "foreign" for gpu in taken):
        say("  ask whose that is to end it: the test starts by itself when the GPU is left alone;")
    say(f"  to do without the test: aitbcctl cancel {job['job_id']}")


def _finish(
    client: Client, gpus: list[Json], job: Json, *, is_drained: bool, is_shown: bool
) -> Outcome:
    """Stay with a test to its end, show what it found, and drain a GPU that failed."""
    tested = ", ".join(map(devices.title, gpus)) or "the processor"
    say(f"{job['job_id']} tests {tested}")
    final = following.to_its_end(client, job, with_logs=False)
    outcome = Outcome(gpus, final, _report(client, job["job_id"]))
    if is_shown:
        _show(client, outcome)
    if is_drained and outcome.verdict == "failed" and len(gpus) == 1:
        _drain(client, gpus[0], outcome)
    return outcome


def _show(client: Client, outcome: Outcome) -> None:
    if outcome.report is None:
        put(f"{outcome.job['job_id']} {outcome.message}")
    else:
        with client.open("GET", job_path(outcome.job["job_id"], "files", "result.txt")) as response:
            text = response.read_at_most(_TABLE_MAX)
        put(LogCleaner().feed(text).decode(errors="replace").rstrip("\n"))
    flush()


def _report(client: Client, job_id: str) -> Json | None:
    try:
        with client.open("GET", job_path(job_id, "files", *_REPORT)) as response:
            report: Json = json.loads(response.read())
            return report
    except (NoSuchFile, NoResults, ValueError):
        return None


def _drain(client: Client, gpu: Json, outcome: Outcome) -> None:
    """Take a GPU that failed out of use, or say whom to ask for that."""
    reason = plain(f"gpus test ({outcome.job['job_id']}): {outcome.message}")[:_REASON_MAX]
    try:
        client.post(f"/v1/gpus/{quote(gpu['uuid'])}/drain", json.dumps({"reason": reason}).encode())
    except AitbcError as error:
        if error.exit_code != 4:
            raise
        command = ["aitbcctl", "gpus", "drain", gpu["uuid"], "--reason", reason]
        say(f"{devices.title(gpu)} goes on taking jobs: {plain(error.detail)};")
        say(f"  ask one for: {plain(shlex.join(command))}")
        return
    uuid = plain(gpu["uuid"])
    say(f"{devices.title(gpu)} is drained; to take it back: aitbcctl gpus resume {uuid}")


def _as_json(outcome: Outcome) -> Json:
    return {
        "gpus": [gpu["uuid"] for gpu in outcome.gpus],
        "job_id": outcome.job["job_id"],
        "verdict": outcome.verdict,
        "message": outcome.message,
        "report": outcome.report,
    }
