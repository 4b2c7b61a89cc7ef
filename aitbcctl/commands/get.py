"""``aitbcctl get``: everything that is known about a job."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from aitbcctl import options, render
from aitbcctl.client import job_path
from aitbcctl.terminal import columns, put, put_json


@click.command("get")
@options.job_argument
@options.json_option("Print it as the API gives it.")
def command(job: str | None, job_id: str | None, as_json: bool) -> int:
    """Show everything about a job: command, requests, attempts, events, where its results lie.

    Of its environment only the names of the variables are shown, never the values.

    \b
    Example:
      aitbcctl get @
    """
    details = options.client().get(job_path(options.named_job(job, job_id)), detail=True)
    if as_json:
        put_json(details)
    else:
        put(render.detail_block(details, datetime.now(UTC), columns(1)))
    return 0
