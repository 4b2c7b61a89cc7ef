"""``aitbcctl cancel``: ends a job and says what became of that."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from aitbcctl import following, options, render
from aitbcctl.client import Client, Json, job_path
from aitbcctl.terminal import complain, is_meant, leave, put, put_json, say
from aitbcd.errors import WrongState


@click.command("cancel")
@options.job_arguments
@click.option("--force", is_flag=True, help="Do not ask, and kill at once, without grace.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; the job keeps its grace.")
@options.json_option("Print the status that it ended with.")
def command(named: Sequence[str], job_id: str | None, force: bool, yes: bool, as_json: bool) -> int:
    """End jobs: SIGTERM to all they started, and after a grace SIGKILL.

    What a job wrote until then is kept as its result. A waiting job is canceled at once. Asks
    first, on a terminal only. The exit code is 0 when the job was canceled, 1 when it ended
    otherwise.

    \b
    Examples:
      aitbcctl cancel job_7k3m9q2x
      aitbcctl cancel --force 42 43 44
    """
    client = options.client()
    jobs = following.jobs(client, options.named_jobs(named, job_id))
    left = [job for job in jobs if not render.is_final(job)]
    if left and not (force or yes or is_meant(_question(left))):
        say("not canceled")
        return 1
    # A single one that is over is refused by the daemon.
    canceled, code = _cancel(client, left if len(jobs) > 1 else jobs, force)
    for job in jobs:
        if render.is_final(job) and len(jobs) > 1:
            say(f"{job['job_id']} is over ({job['status']})")
            code = WrongState.exit_code
    ended = []
    for status in canceled:
        status = status if render.is_final(status) else _wait(client, status)
        ended.append(status)
        if not as_json:
            put(f"{status['job_id']} {_became(status)}")
    if as_json:
        put_json(ended[0] if len(jobs) == 1 else {"jobs": ended})
    return code or (0 if all(job["status"] == "canceled" for job in ended) else 1)


def _cancel(client: Client, jobs: list[Json], force: bool) -> tuple[list[Json], int]:
    """Return what became of the jobs, and an exit code; they end beside each other."""
    body = b'{"force": true}' if force else b""
    canceled, code = [], 0
    for job in jobs:
        try:
            canceled.append(client.post(job_path(job["job_id"], "cancel"), body))
        except WrongState as error:
            if len(jobs) == 1:
                raise
            complain(error)
            code = error.exit_code
    return canceled, code


def _question(jobs: list[Json]) -> str:
    if len(jobs) == 1:
        return f"Cancel {render.called(jobs[0])}, {render.stands(jobs[0])}?"
    return f"Cancel {len(jobs)} jobs: {', '.join(map(render.called, jobs))}?"


def _wait(client: Client, status: Json) -> Json:
    job_id = status["job_id"]
    say(f"{job_id} {status['status']}: waiting until nothing of it runs")
    try:
        return following.ended(client, job_id)
    except KeyboardInterrupt:
        leave(f"left; {job_id} is still being canceled: aitbcctl status {job_id}")


def _became(status: Json) -> str:
    if status.get("reason") == "cancellation_failed":
        return f"cancellation failed: {render.plain(status.get('message') or '')}"
    if status["status"] != "canceled":
        return render.ending(status, datetime.now(UTC))
    return "canceled" if status.get("started_at") else "canceled before it started"
