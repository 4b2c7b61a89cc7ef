"""``aitbcctl get``: everything that is known about a job."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from aitbcctl import options, render
from aitbcctl.client import Client, Json, job_path
from aitbcctl.terminal import columns, put, put_json
from aitbcd.errors import AitbcError

#: Of a package with more, output.json is too long to read for a few lines.
FILES_MAX = 10_000


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
    client = options.client()
    details = client.get(job_path(options.named_job(job, job_id)), detail=True)
    if as_json:
        put_json(details)
    else:
        left_out = _left_out(client, details)
        put(render.detail_block(details, datetime.now(UTC), columns(1), left_out))
    return 0


def _left_out(client: Client, details: Json) -> list[Json]:
    """Return what was not kept with the results, and why: their output.json tells it alone."""
    if details.get("results") != "kept" or (details.get("result_files") or 0) > FILES_MAX:
        return []
    try:
        output = client.get(job_path(details["job_id"], "result"))
    except AitbcError:
        return []
    cut = [
        {"path": f"logs/{log}", "why": f"{render.size(one['bytes'])} of its middle"}
        for log, one in (output.get("logs_dropped") or {}).items()
    ]
    return cut + (output.get("left_out") or [])
