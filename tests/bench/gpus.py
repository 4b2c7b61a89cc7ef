"""A machine with stand-in GPUs: what watching them costs, and how soon one has its next job."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench import proc
from tests.bench.client import Connection, jobs_in, wait_until
from tests.driver import GIB, Driver, build, gpu, process
from tests.service import Service, children, wait_for

#: The least that a job does which uses its GPUs for a moment: it is there when the next one waits.
_BRIEF = '{"argv":["sleep","0.1"],"gpus":%d}\n'


@contextmanager
def machine(folder: Path, count: int) -> Iterator[Driver]:
    """Have so many GPUs, for the daemons that are started meanwhile."""
    folder.mkdir()
    driver = Driver(build(folder), folder / "nvml")
    release(driver, count)
    before = dict(os.environ)
    os.environ.update(driver.environ)
    try:
        yield driver
    finally:
        os.environ.clear()
        os.environ.update(before)


def release(driver: Driver, count: int) -> None:
    """Let nobody use the GPUs."""
    driver.write(*(gpu(number) for number in range(count)))


def sampling_cost(service: Service, driver: Driver, count: int, seconds: float) -> float:
    """Return what part of a core daemon and probe take while a job of 8 processes is sampled."""
    with Connection(service.socket) as connection:
        workers = "for i in 1 2 3 4 5 6 7 8; do sleep 100000 & done; wait"
        job = connection.submit("sh", "-c", workers, gpus=count)
        wait_until(service.socket, job, "running")
        parent = int(connection.ask("GET", f"/v1/jobs/{job}?detail=true")["attempts"][0]["handle"])
        own = wait_for("it works", lambda: children(parent) if len(children(parent)) == 8 else None)
        driver.write(
            *(
                gpu(
                    number, process=process(own[number % 8], 60 * GIB), used=60 * GIB, power=400_000
                )
                for number in range(count)
            )
        )
        # Long enough that all that comes once has come.
        time.sleep(min(seconds / 5, 5))
        pids = service.pid, probe_of(service)
        begun, before = time.monotonic(), sum(map(proc.cpu_seconds, pids))
        time.sleep(seconds)
        used = sum(map(proc.cpu_seconds, pids)) - before
        return used / (time.monotonic() - begun)


def probe_of(service: Service) -> int:
    (found,) = (
        pid
        for pid in children(service.pid)
        if b"aitbcd.gpus.probe" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


def gaps(service: Service, count: int, *, gpus: int) -> list[float]:
    """Return the milliseconds from the end of each job to the start of the next in its place."""
    with Connection(service.socket) as connection:
        answer = connection.submit_lines((_BRIEF % gpus * count).encode())
        jobs = jobs_in(answer)
        for job in jobs[-2:]:
            wait_until(service.socket, job, "completed")
        attempts = [
            connection.ask("GET", f"/v1/jobs/{job}?detail=true")["attempts"][-1] for job in jobs
        ]
    places: dict[str, list[dict[str, Any]]] = {}
    for attempt in attempts:
        places.setdefault(" ".join(attempt["gpu_uuids"]), []).append(attempt)
    return [
        (_at(after["started_at"]) - _at(before["finished_at"])) * 1e3
        for of_place in places.values()
        for before, after in _neighbours(of_place)
    ]


def _neighbours(attempts: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    ordered = sorted(attempts, key=lambda one: str(one["started_at"]))
    yield from pairwise(ordered)


def _at(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
