"""Charges and expiry when the daemon is killed with SIGKILL at every step."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import PLAIN_CONFIG, Service, wait_for

#: A price of a millionth for each microsecond of a core, so that charges are times.
CONFIG = (
    PLAIN_CONFIG + "[slots]\ncpus = 4\n[storage]\nreserve = 0\n[pricing]\ncpu_hour = 3600\n"
    '[jobs]\ncancel_grace = "1s"\n'
)
SHORT = CONFIG + '[plans.free]\nretention = "1s"\n'
WAIT = "until test -e {}; do sleep 0.02; done; exit 3"


class Box:
    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.service = Service(folder / "daemon", config)

    def post(self, path: str, body: object) -> Any:
        transport = httpx.HTTPTransport(uds=str(self.service.socket))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=60) as http:
            answer = http.post(path, json=body)
            assert answer.status_code in (200, 201), answer.text
            return answer.json()

    def submit(self, line: str, **more: object) -> str:
        body = {"argv": ["sh", "-c", line], "cwd": str(self.folder), **more}
        job: str = self.post("/v1/jobs", body)["job_id"]
        return job

    def restart(self) -> None:
        self.service.kill()
        self.service.start()

    def database(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self.service.state / "queue.db", isolation_level=None))

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self.database() as database:
            return database.execute(statement).fetchall()

    def wait_ended(self, count: int) -> None:
        wait_for(
            f"{count} jobs end",
            lambda: (
                self.rows("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL")[0][0] == count
            ),
            log=self.service.log,
        )

    def wait_status(self, status: str) -> None:
        wait_for(
            f"a job is {status}",
            lambda: self.rows(f"SELECT 1 FROM jobs WHERE status = '{status}'"),
            log=self.service.log,
        )

    def assert_charged_once(self) -> None:
        """Each attempt has the charge of its own time, and each job the sum of them."""
        attempts = self.rows(
            "SELECT a.charge_micro, j.cpus * coalesce(a.finished_at - a.started_at, 0)"
            " FROM attempts a JOIN jobs j ON j.number = a.number"
        )
        assert attempts
        for charge, expected in attempts:
            assert charge == expected
        sums = self.rows(
            "SELECT j.charge_micro, coalesce((SELECT sum(a.charge_micro) FROM attempts a"
            " WHERE a.number = j.number), 0) FROM jobs j"
        )
        for charge, expected in sums:
            assert charge == expected
        (total,) = self.rows("SELECT sum(charge_micro) FROM jobs")[0]
        assert total > 0

    def assert_nothing_is_left(self) -> None:
        results = self.service.state / "results"
        wait_for("every package goes", lambda: not os.listdir(results), log=self.service.log)
        wait_for("it is noted", lambda: not self.rows("SELECT * FROM removals"))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, CONFIG)
    with made.service:
        yield made


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, SHORT)
    with made.service:
        yield made


def test_a_job_whose_daemon_is_killed_while_it_runs_is_charged_once(box: Box) -> None:
    gate = box.folder / "go"
    box.submit(WAIT.format(gate), retries=1, cpus=2)
    box.wait_status("running")
    box.restart()
    gate.touch()
    box.wait_ended(1)
    assert box.rows("SELECT attempt FROM jobs") == [(2,)]
    box.assert_charged_once()


def test_a_job_that_was_sealed_and_not_recorded_is_charged_once(box: Box) -> None:
    gate = box.folder / "go"
    job = box.submit(WAIT.format(gate))
    box.wait_status("running")
    with box.database() as database:
        database.execute("BEGIN IMMEDIATE")
        gate.touch()
        wait_for("it is sealed", (box.service.state / "results" / job).exists)
        box.service.kill()
        database.execute("ROLLBACK")
    box.service.start()
    box.wait_ended(1)
    box.assert_charged_once()
    assert box.rows("SELECT expires_at - finished_at FROM jobs") == [(7 * 86_400_000_000,)]


def test_a_canceled_job_is_charged_once_over_a_kill(box: Box) -> None:
    job = box.submit("trap '' TERM; while :; do sleep 1; done")
    box.wait_status("running")
    box.post(f"/v1/jobs/{job}/cancel", {})
    box.restart()
    box.wait_ended(1)
    assert box.rows("SELECT status FROM jobs") == [("canceled",)]
    box.assert_charged_once()


def test_killed_at_any_moment_every_attempt_is_charged_once(box: Box) -> None:
    for _ in range(20):
        box.submit("sleep 0.05; exit 1", retries=2)
    chance = random.Random(11)
    for _ in range(8):
        wait_for("time goes by", _after(chance.uniform(0.02, 0.3)))
        box.restart()
    box.wait_ended(20)
    assert box.rows("SELECT DISTINCT attempt FROM jobs") == [(3,)]
    box.assert_charged_once()


def test_killed_at_any_moment_what_expired_goes(short: Box) -> None:
    for _ in range(20):
        short.submit("for n in $(seq 50); do echo x > $AITBC_ARTIFACTS_DIR/$n; done")
    chance = random.Random(5)
    for _ in range(8):
        wait_for("time goes by", _after(chance.uniform(0.1, 0.5)))
        short.restart()
    short.wait_ended(20)
    short.assert_nothing_is_left()
    wait_for(
        "all are noted as expired",
        lambda: short.rows("SELECT DISTINCT results FROM jobs") == [("expired",)],
    )


def test_a_delete_that_is_killed_in_between_is_finished(box: Box) -> None:
    job = box.submit("cd $AITBC_ARTIFACTS_DIR && seq 20000 | xargs touch")
    box.wait_ended(1)
    transport = httpx.HTTPTransport(uds=str(box.service.socket))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=60) as http:
        deleting = threading.Thread(target=_ask_to_delete, args=(http, job))
        deleting.start()
        wait_for("it is given up", lambda: box.rows("SELECT 1 FROM removals"))
        box.service.kill()
        deleting.join()
    box.service.start()
    box.assert_nothing_is_left()
    assert box.rows("SELECT deleted_at IS NOT NULL, name, charge_micro > 0 FROM jobs") == [
        (1, None, 1)
    ]
    assert box.rows("SELECT * FROM specs") == []


def _ask_to_delete(http: httpx.Client, job: str) -> None:
    with suppress(httpx.TransportError):
        http.delete(f"/v1/jobs/{job}")


def test_an_idle_daemon_with_results_that_expire_later_does_not_wake(box: Box) -> None:
    box.submit("true")
    box.wait_ended(1)
    # One that polled would never do that.
    wait_for("it sleeps for three seconds on end", _Asleep(box.service.pid, 3.0))


class _Asleep:
    """Tells whether a process has not woken for a while."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self._last, self._since = -1, 0.0

    def __call__(self) -> bool:
        now = _switches(self._pid)
        if now != self._last:
            self._last, self._since = now, time.monotonic()
        return time.monotonic() - self._since > self._seconds


def _switches(pid: int) -> int:
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def _after(seconds: float) -> Any:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until
