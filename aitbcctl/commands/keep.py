"""``aitbcctl keep``: a job's results are kept longer."""

from __future__ import annotations

import json

import click

from aitbcctl import dates, options, render
from aitbcctl.client import job_path
from aitbcctl.terminal import put, put_json


@click.command("keep")
@options.job_argument
@click.option(
    "--until",
    metavar="DATE",
    help="To the end of this day, or to this time; default: as long as your plan allows.",
)
@options.json_option("Print the job's status.")
def command(job: str | None, job_id: str | None, until: str | None, as_json: bool) -> int:
    """Keep a job's results longer than they would be, as far as your plan allows.

    \b
    Examples:
      aitbcctl keep job_7k3m9q2x
      aitbcctl keep job_7k3m9q2x --until 2026-12-31
    """
    end = None if until is None else dates.until(until, "--until")
    path = job_path(options.named_job(job, job_id), "keep")
    status = options.client().post(path, json.dumps({"until": end}).encode())
    if as_json:
        put_json(status)
    else:
        put(f"{status['job_id']} is kept until {render.when(status['expires_at'])}")
    return 0
