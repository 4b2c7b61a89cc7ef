"""What is measured, and against what. Each measure runs its baseline beside it and returns rows.

A figure alone says little: machines differ and the same one differs from day to day. So each is a
ratio to something plain that the same machine did in the same run. Every daemon gets a fresh
folder, and nothing is deleted until the end: ext4 avoids recently deleted inodes, which made the
same drain four times slower.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.bench import gpus, history, planning, proc
from tests.bench.client import Connection, jobs_in, wait_until
from tests.service import DEADLINE_S, PROGRAMS, Service, children, descendants, environ_of, wait_for

MIB = 1024 * 1024
NO_OP = b'{"argv":["/bin/true"]}\n'
#: Says when it got the processor for the first time, on the clock that we read too.
FIRST_INSTRUCTION = """
#include <stdio.h>
#include <time.h>
int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (argc > 1 && !freopen(argv[1], "w", stdout)) return 1;
    return printf("%lld\\n", now.tv_sec * 1000000000LL + now.tv_nsec) < 0;
}
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of each; ``QUICK`` only shows that the bench works."""

    rounds: int = 3
    drain: int = 1000
    latency: int = 50
    cli: int = 20
    batches: tuple[int, ...] = (10_000, 100_000)
    listing: int = 200
    history: tuple[int, int] = (1_000, 1_000_000)
    idle_s: float = 10.0
    supervisors: int = 100
    planned: int = 10_000
    sampled_s: float = 60.0
    handovers: int = 60


QUICK = Counts(1, 20, 3, 2, (50, 200), 5, (100, 500), 0.5, 3, 50, 1.0, 6)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    figure: str
    baseline: str
    ratio: str
    goal: str
    is_met: bool | None = None


class Bench:
    """Where the daemons of one run live, and how much it does."""

    def __init__(self, folder: Path, counts: Counts) -> None:
        self.folder = folder
        self.counts = counts
        self._services = 0

    def service(self, cpus: int, *, name: str, config: str = "") -> Service:
        """Return a daemon in a fresh folder that shares this many cores among jobs."""
        self._services += 1
        config = f'[server]\ntcp = ""\n[slots]\ncpus = {cpus}\n{config}'
        return Service(self.folder / f"{self._services:02d}-{name}", config)


# -- no-op drain ---------------------------------------------------------------------------------


def spawn_rate(count: int) -> float:
    """Return B: posix_spawn and wait of /bin/true a second, two at a time."""
    started = time.perf_counter()
    running = 0
    for _ in range(count):
        if running == 2:
            os.wait()
            running -= 1
        os.posix_spawn("/bin/true", ["true"], {})
        running += 1
    for _ in range(running):
        os.wait()
    return count / (time.perf_counter() - started)


def drain_rate(service: Service, count: int) -> float:
    """Return no-op jobs a second, from the request to the last committed final status."""
    lines = NO_OP * count
    with Connection(service.socket) as connection:
        started = time.perf_counter()
        jobs = jobs_in(connection.submit_lines(lines))
        wait_until(service.socket, jobs[-1], "completed")
        # In order: the others are over, or nearly.
        for status in ("pending", "assigned", "running"):
            for job in connection.ask("GET", f"/v1/jobs?status={status}")["jobs"]:
                wait_until(service.socket, job["job_id"], "completed")
        seconds = time.perf_counter() - started
        for status in ("failed", "canceled"):
            left = connection.ask("GET", f"/v1/jobs?status={status}")["jobs"]
            if left:
                raise RuntimeError(f"{len(left)} jobs are {status} at the end: {left[0]}")
    return count / seconds


def drain(bench: Bench) -> list[Row]:
    rates, spawns, costs = [], [], []
    for _ in range(bench.counts.rounds):
        spawns.append(spawn_rate(bench.counts.drain))
        with bench.service(2, name="drain") as service:
            before = proc.cpu_seconds(service.pid)
            rates.append(drain_rate(service, bench.counts.drain))
            costs.append((proc.cpu_seconds(service.pid) - before) / bench.counts.drain)
    spawn, rate, cost = map(statistics.median, (spawns, rates, costs))
    return [
        Row(
            f"no-op drain of {bench.counts.drain:,} jobs",
            f"{rate:,.0f} jobs/s",
            f"B {spawn:,.0f}/s",
            f"B/{spawn / rate:.1f}",
            "B/6, aim B/3.5",
            rate >= spawn / 6,
        ),
        Row("  of that, the daemon's own processor time", f"{cost * 1e3:.2f} ms a job", "", "", ""),
        *([drain_of_another_user(bench)] if os.geteuid() == 0 else []),
    ]


@contextmanager
def another_user() -> Iterator[None]:
    """Connect as a user that a root daemon must switch to for each job."""
    os.seteuid(pwd.getpwnam("daemon").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


def drain_of_another_user(bench: Bench) -> Row:
    rates, spawns = [], []
    for _ in range(bench.counts.rounds):
        spawns.append(spawn_rate(bench.counts.drain))
        with bench.service(2, name="drain-user") as service:
            service.socket.parent.chmod(0o755)
            with another_user():
                rate = drain_rate(service, bench.counts.drain)
            rates.append(rate)
    spawn, rate = statistics.median(spawns), statistics.median(rates)
    return Row(
        "  the same as another user than the daemon's",
        f"{rate:,.0f} jobs/s",
        f"B {spawn:,.0f}/s",
        f"B/{spawn / rate:.1f}",
        "",
    )


# -- latency -------------------------------------------------------------------------------------


def compile_probe(folder: Path) -> Path:
    source, program = folder / "first.c", folder / "first"
    source.write_text(FIRST_INSTRUCTION)
    command = ["gcc", "-O2", "-o", str(program), str(source)]
    static = subprocess.run([*command, "-static"], capture_output=True, check=False)
    if static.returncode != 0:
        subprocess.run(command, check=True)
    return program


def spawn_latency(program: Path) -> float:
    """Return milliseconds from posix_spawn to the first instruction of a program."""
    reader, writer = os.pipe()
    started = time.monotonic_ns()
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1)]
    pid = os.posix_spawn(program, [program.name], {}, file_actions=actions)
    os.close(writer)
    with open(reader, "rb") as output:
        first = int(output.read())
    os.waitpid(pid, 0)
    return (first - started) / 1e6


def submit_latency(
    service: Service, connection: Connection, program: Path, fifo: Path | None = None
) -> float:
    """Return milliseconds from sending a job to its first instruction, on an idle queue.

    Args:
        fifo: where the program says it. None: its events are followed from a second connection, and
            the daemon has that to do meanwhile.
    """
    body = json.dumps({"argv": [str(program), *([str(fifo)] if fifo else [])]}).encode()
    started = time.monotonic_ns()
    job = connection.ask("POST", "/v1/jobs", body)["job_id"]
    said = read_fifo(fifo) if fifo else None
    wait_until(service.socket, job, "completed")
    return (int(said or connection.read_log(job)) - started) / 1e6


def read_fifo(path: Path) -> bytes:
    """Return what a program says there; fail when it says nothing."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as fifo:
        if not select.select([fifo], [], [], DEADLINE_S)[0]:
            raise RuntimeError(f"nobody wrote to {path}")
        return fifo.read()


def latency(bench: Bench) -> list[Row]:
    program, fifo = compile_probe(bench.folder), bench.folder / "first.fifo"
    os.mkfifo(fifo)
    ours, followed, bare = [], [], []
    with (
        bench.service(2, name="latency") as service,
        Connection(service.socket) as connection,
    ):
        submit_latency(service, connection, program)  # the first one loads things
        for _ in range(bench.counts.latency):
            bare.append(spawn_latency(program))
            ours.append(submit_latency(service, connection, program, fifo))
            followed.append(submit_latency(service, connection, program))
    middle, plain = statistics.median(ours), statistics.median(bare)
    watched = statistics.median(followed)
    worst = sorted(ours)[int(len(ours) * 0.9)]
    return [
        Row(
            f"submit to first instruction, median of {len(ours)}",
            f"{middle:.2f} ms",
            f"posix_spawn {plain:.2f} ms",
            f"x{middle / plain:.1f}",
            "5 ms, aim 2.5",
            middle <= 5,
        ),
        Row("  nine in ten within", f"{worst:.2f} ms", "", "", ""),
        Row("  while somebody follows its events", f"{watched:.2f} ms", "", "", ""),
    ]


# -- the command line ----------------------------------------------------------------------------


def seconds_of(command: list[str | Path], environ: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def command_line(bench: Bench) -> list[Row]:
    program = compile_probe(bench.folder)
    ours, firsts, clicks, bare = [], [], [], []
    with bench.service(2, name="cli") as service, Connection(service.socket) as connection:
        environ = os.environ | service.environ
        submit: list[str | Path] = [PROGRAMS / "aitbcctl", "submit", "--", program]
        seconds_of(submit, environ)  # compiles what pip left uncompiled
        for _ in range(bench.counts.cli):
            started = time.monotonic_ns()
            ours.append(seconds_of(submit, environ))
            wait_until(service.socket, "@", "completed")
            firsts.append((int(connection.read_log("@")) - started) / 1e6)
            clicks.append(seconds_of([sys.executable, "-c", "import click"], environ))
            bare.append(seconds_of([sys.executable, "-c", "pass"], environ))
    middle, first, click, plain = map(statistics.median, (ours, firsts, clicks, bare))
    return [
        Row(
            f"aitbcctl submit, median of {len(ours)}",
            f"{middle * 1e3:.0f} ms",
            f"import click {click * 1e3:.0f} ms",
            f"x{middle / click:.2f}",
            "x1.3",
            middle <= 1.3 * click,
        ),
        Row("  from its start to the job's first instruction", f"{first:.0f} ms", "", "", ""),
        Row("  python -c pass", f"{plain * 1e3:.0f} ms", "", "", ""),
    ]


# -- many jobs -----------------------------------------------------------------------------------


def bulk_insert(path: Path, count: int) -> float:
    """Return seconds of the plainest durable thing: so many short rows in one transaction."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE jobs(number INTEGER PRIMARY KEY, argv BLOB, state TEXT)")
    rows = [(b"/bin/true", "pending")] * count
    started = time.perf_counter()
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT INTO jobs(argv, state) VALUES (?, ?)", rows)
    database.execute("COMMIT")
    seconds = time.perf_counter() - started
    database.close()
    return seconds


def block(service: Service, connection: Connection, cpus: int) -> None:
    """Fill all slots with one job, so that what comes after it stays pending."""
    job = connection.submit("sleep", "100000", cpus=cpus)
    wait_until(service.socket, job, "running")


class Taken(NamedTuple):
    """What it cost to take a batch: seconds and bytes."""

    seconds: float
    plain_seconds: float
    idle: int
    grown: int
    peak: int


def take_batch(bench: Bench, count: int) -> Taken:
    lines = NO_OP * count
    with (
        bench.service(1, name=f"batch-{count}") as service,
        Connection(service.socket) as connection,
    ):
        plain = bulk_insert(service.folder / "plain.db", count)
        block(service, connection, 1)
        idle = proc.pss(service.pid)
        proc.forget_peak(service.pid)
        before = proc.rss(service.pid)
        started = time.perf_counter()
        answer = connection.submit_lines(lines)
        seconds = time.perf_counter() - started
        peak = proc.peak_rss(service.pid) - before
        grown = proc.pss(service.pid) - idle
        jobs = jobs_in(answer)
        if len(jobs) != count:
            raise RuntimeError(f"{len(jobs)} of {count} jobs were acknowledged")
    return Taken(seconds, plain, idle, grown, peak)


def batches(bench: Bench) -> list[Row]:
    rows = []
    goals = {10_000: 0.2, 100_000: 2.0}
    for count in bench.counts.batches:
        rounds = [take_batch(bench, count) for _ in range(bench.counts.rounds)]
        seconds, plain, idle, grown, peak = map(statistics.median, zip(*rounds, strict=True))
        goal = goals.get(count)
        rows += [
            Row(
                f"batch of {count:,} jobs, acknowledged",
                f"{seconds:.3f} s",
                f"bare SQLite {plain:.3f} s",
                f"x{seconds / plain:.1f}",
                f"{goal} s" if goal else "",
                seconds < goal if goal else None,
            ),
            Row(
                f"  memory with {count:,} pending",
                f"{grown / MIB:+.1f} MiB",
                f"idle {idle / MIB:.1f} MiB",
                f"x{(idle + grown) / idle:.2f}",
                "under +10 MiB" if goal else "",
                grown < 10 * MIB if goal else None,
            ),
            Row(
                f"  peak of it while taking {len(NO_OP) * count / MIB:.1f} MiB",
                f"{peak / MIB:+.1f} MiB",
                "",
                "",
                "",
            ),
        ]
    return rows


def newest(connection: Connection) -> float:
    started = time.perf_counter()
    answer = connection.ask("GET", "/v1/jobs?limit=50")
    seconds = time.perf_counter() - started
    if len(answer["jobs"]) != 50:
        raise RuntimeError(f"{len(answer['jobs'])} jobs in a list of 50")
    return seconds


def planned(bench: Bench) -> list[Row]:
    times = [planning.decide(bench.counts.planned) for _ in range(bench.counts.rounds)]
    bare = min(planning.plainly(bench.counts.planned) for _ in range(bench.counts.rounds))
    decision = min(times)
    return [
        Row(
            f"a decision, {bench.counts.planned:,} jobs over 16 GPUs",
            f"{decision:.0f} us",
            f"first come, any GPU {bare:.2f} us",
            f"x{decision / bare:.0f}",
            "50 us",
            decision <= 50,
        )
    ]


def listing(bench: Bench) -> list[Row]:
    few, many = 100, max(bench.counts.batches)
    with (
        bench.service(1, name="few") as small,
        bench.service(1, name="many") as large,
        Connection(small.socket) as to_small,
        Connection(large.socket) as to_large,
    ):
        for service, connection, count in ((small, to_small, few), (large, to_large, many)):
            block(service, connection, 1)
            connection.submit_lines(NO_OP * count)
            newest(connection)
        pairs = [(newest(to_small), newest(to_large)) for _ in range(bench.counts.listing)]
    short, long = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    return [
        *histories(bench),
        Row(
            f"newest 50 of {many:,} jobs, median of {len(pairs)}",
            f"{long:.2f} ms",
            f"of {few} jobs {short:.2f} ms",
            f"x{long / short:.2f}",
            "x1 within noise",
            long <= 1.25 * short,
        ),
    ]


def histories(bench: Bench) -> list[Row]:
    """Ask a long and a short history the same; no daemon between, so that it is the store's."""
    times = []
    for count in bench.counts.history:
        folder = bench.folder / f"history-{count}"
        folder.mkdir()
        history.make(folder / "queue.db", count)
        times.append(history.slowest(folder / "queue.db"))
    few, many = bench.counts.history
    return [
        Row(
            f"{kind} of {many:,} jobs, slowest of {len(questions)}",
            f"{long * 1e3:.2f} ms",
            f"of {few:,} jobs {short * 1e3:.2f} ms",
            f"x{long / short:.1f}",
            f"{goal} s",
            long <= goal,
        )
        for (kind, questions, goal), short, long in zip(history.KINDS, *times, strict=True)
    ]


# -- at rest -------------------------------------------------------------------------------------


def launcher_of(service: Service) -> int:
    """Return the launcher's process: started by the daemon, perhaps no longer its child."""
    for pid in (*descendants(service.pid), *children(os.getpid())):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"launcher" in command and os.fsencode(service.state) in command:
            return pid
    raise LookupError("no launcher of this daemon")


def bare_python() -> int:
    """Return the memory of an interpreter that has imported what any such daemon must."""
    code = "import asyncio, json, sqlite3; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        size = proc.pss(child.pid)
        child.communicate(b"\n")
    return size


@contextmanager
def bare_uvicorn(folder: Path) -> Iterator[int]:
    """Run uvicorn as it is, with an application of nothing, on a socket; yield its pid."""
    options = "uds='uvicorn.sock', lifespan='off', log_config=None"
    code = f"import uvicorn; uvicorn.run(lambda scope: None, {options})"
    # There, because the folder's name can be longer than a socket's may be.
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder) as child:
        try:
            wait_for("uvicorn listens", (folder / "uvicorn.sock").is_socket)
            yield child.pid
        finally:
            child.kill()


def idle(bench: Bench) -> list[Row]:
    plain = bare_python()
    with (
        bench.service(2, name="idle") as service,
        bare_uvicorn(service.folder) as uvicorn,
        Connection(service.socket) as connection,
    ):
        job = connection.submit("/bin/true")
        wait_until(service.socket, job, "completed")
        connection.close()
        launcher = launcher_of(service)
        time.sleep(bench.counts.idle_s / 5)  # what the job left to do is done
        waking = service.pid, launcher, uvicorn
        first = [proc.switches(pid) for pid in waking]
        time.sleep(bench.counts.idle_s)
        ours, others, bare = (
            (proc.switches(pid) - then) / bench.counts.idle_s
            for pid, then in zip(waking, first, strict=True)
        )
        size, small = proc.pss(service.pid), proc.pss(launcher)
    return [
        *(
            Row(
                f"idle {what}, wakeups",
                f"{rate:.1f}/s",
                f"uvicorn as it is {bare:.1f}/s",
                f"x{rate / bare:.2f}",
                "0/s",
                rate == 0,
            )
            for what, rate in (("daemon", ours), ("launcher", others))
        ),
        Row(
            "idle daemon, memory (PSS)",
            f"{size / MIB:.1f} MiB",
            f"python, asyncio, sqlite3 {plain / MIB:.1f} MiB",
            f"x{size / plain:.1f}",
            "under 50 MiB",
            size < 50 * MIB,
        ),
        Row("idle launcher, memory (PSS)", f"{small / MIB:.1f} MiB", "", "", ""),
    ]


def supervisors(bench: Bench) -> list[Row]:
    count = bench.counts.supervisors
    with (
        bench.service(count, name="supervisors") as service,
        Connection(service.socket) as connection,
    ):
        answer = connection.submit_lines(b'{"argv":["sleep","100000"]}\n' * count)
        for job in jobs_in(answer):
            wait_until(service.socket, job, "running")
        owners = wait_for("all jobs run", lambda: owners_of_jobs(service, count))
        sizes = [proc.pss(pid) for pid in owners]
    plain = bare_python()
    mean = statistics.mean(sizes)
    return [
        Row(
            f"a supervisor (PSS), mean of {count}",
            f"{mean / MIB:.2f} MiB",
            f"python, asyncio, sqlite3 {plain / MIB:.1f} MiB",
            f"x{mean / plain:.2f}",
            "1.5 MiB",
            mean <= 1.5 * MIB,
        )
    ]


def owners_of_jobs(service: Service, count: int) -> set[int] | None:
    """Return the parents of the main processes of the jobs, when all are there."""
    ours = os.fsencode(service.state)
    jobs = [
        pid
        for pid in descendants(os.getpid())
        if ours in environ_of(pid).get(b"AITBC_RESULT", b"")
        and Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    ]
    return {proc.parent(pid) for pid in jobs} if len(jobs) == count else None


# -- GPUs ----------------------------------------------------------------------------------------


def sampling(bench: Bench) -> list[Row]:
    count, seconds = 8, bench.counts.sampled_s
    with gpus.machine(bench.folder / "sampled", count) as driver:
        costs = []
        for name, sample in (("sampled", "1s"), ("unsampled", "0")):
            config = f'[gpus]\nsample = "{sample}"\n'
            with bench.service(8, name=name, config=config) as service:
                costs.append(gpus.sampling_cost(service, driver, count, seconds))
            gpus.release(driver, count)
    cost, plain = costs
    return [
        Row(
            f"sampling {count} GPUs each second, daemon and probe for {seconds:.0f} s",
            f"{cost:.2%} of a core",
            f"not sampled {plain:.2%}",
            "",
            "1 %",
            cost < 0.01,
        )
    ]


def handover(bench: Bench) -> list[Row]:
    count = bench.counts.handovers
    with gpus.machine(bench.folder / "handed", 2):
        with bench.service(4, name="gpus") as service:
            with_gpu = gpus.gaps(service, count, gpus=1)
        with bench.service(1, name="cores") as service:
            without = gpus.gaps(service, count // 2, gpus=0)
    middle, plain = statistics.median(with_gpu), statistics.median(without)
    return [
        Row(
            f"end of a GPU job to the start of the next, median of {len(with_gpu)}",
            f"{middle:.1f} ms",
            f"without GPUs {plain:.1f} ms",
            f"x{middle / plain:.1f}",
            "20 ms",
            middle <= 20,
        ),
        Row(
            "  nine in ten within",
            f"{sorted(with_gpu)[int(len(with_gpu) * 0.9)]:.1f} ms",
            "",
            "",
            "",
        ),
    ]


MEASURES: dict[str, Callable[[Bench], list[Row]]] = {
    "drain": drain,
    "latency": latency,
    "cli": command_line,
    "batch": batches,
    "plan": planned,
    "list": listing,
    "idle": idle,
    "supervisors": supervisors,
    "sampling": sampling,
    "gpus": handover,
}
