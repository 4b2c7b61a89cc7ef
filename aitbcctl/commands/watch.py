"""``aitbcctl watch``: a job's changes until its end, as a live bar or as lines."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from aitbcctl import following, options, render, terminal
from aitbcctl.client import Client, Json
from aitbcctl.terminal import flush, put, put_json


@click.command("watch")
@options.job_argument
@options.json_option("Print each change as a line of JSON.")
def command(job: str | None, job_id: str | None, as_json: bool) -> int:
    """Follow a job to its end; the exit code is 0 when it completed, 1 otherwise.

    On a terminal one live line shows state, progress and times; in a pipe each change is a line.
    A restart of the daemon does not matter. ^C leaves; the job goes on.

    \b
    Example:
      aitbcctl watch @ && aitbcctl download @
    """
    client = options.client()
    status = following.job(client, options.named_job(job, job_id))
    try:
        final = _watch(client, status, as_json)
    except KeyboardInterrupt:
        job_id = status["job_id"]
        terminal.leave(f"left; {job_id} goes on. To come back: aitbcctl watch {job_id}")
    return 0 if final["status"] == "completed" else 1


def _watch(client: Client, status: Json, as_json: bool) -> Json:
    job_id = status["job_id"]
    if not as_json and terminal.is_shown(1):
        return _draw(client, status)
    for change in following.changes(client, job_id):
        put_json(change, line=True) if as_json else put(f"{job_id}  {render.change_line(change)}")
        flush()
    return following.job_patiently(client, job_id)


def _draw(client: Client, status: Json) -> Json:
    """Keep one line of the terminal true until the job's end, and leave the ending there."""
    from aitbcctl.bar import Bar

    job_id = status["job_id"]
    with Bar(status) as bar:
        for change in following.changes(client, job_id, tick_s=following.TICK_S):
            if change or status["status"] == "pending":
                # Asked for anew with each change: it knows when the job will be done, too.
                status = following.job_patiently(client, job_id)
            bar.show(status)
    status = following.job_patiently(client, job_id)
    put(f"{job_id} {render.ending(status, datetime.now(UTC))}")
    return status
