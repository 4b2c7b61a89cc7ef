"""``aitbcctl status``: where a job stands."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from aitbcctl import options, render
from aitbcctl.client import job_path
from aitbcctl.terminal import put, put_json


@click.command("status")
@options.job_argument
@options.json_option("Print the status as the API gives it.")
def command(job: str | None, job_id: str | None, as_json: bool) -> int:
    """Show where a job stands: its state, progress, times, results.

    \b
    Example:
      aitbcctl status job_7k3m9q2x
    """
    status = options.client().get(job_path(options.named_job(job, job_id)))
    put_json(status) if as_json else put(render.status_block(status, datetime.now(UTC)))
    return 0
