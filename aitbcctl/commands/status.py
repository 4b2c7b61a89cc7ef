"""``aitbcctl status``: where a job stands."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from aitbcctl import options, render, terminal
from aitbcctl.client import Client, Json, job_path
from aitbcctl.terminal import put, put_json
from aitbcd.errors import AitbcError

#: Of what a failed job last wrote.
LINES = 5


@click.command("status")
@options.job_argument
@options.json_option("Print the status as the API gives it.")
def command(job: str | None, job_id: str | None, as_json: bool) -> int:
    """Show where a job stands: its state, progress, times, results.

    Of a failed job also the last lines of what it wrote to stderr.

    \b
    Example:
      aitbcctl status job_7k3m9q2x
    """
    client = options.client()
    status = client.get(job_path(options.named_job(job, job_id)))
    if as_json:
        put_json(status)
        return 0
    put(render.status_block(status, datetime.now(UTC), terminal.columns(1)))
    if status["status"] == "failed":
        put("\n".join(_what_it_wrote(client, status)))
    return 0


def _what_it_wrote(client: Client, status: Json) -> list[str]:
    """Return the end of its stderr, and how to see more."""
    job_id = status["job_id"]
    if status.get("reason") == "cannot_start" or status.get("results") != "kept":
        return [f"\nmore: aitbcctl get {job_id}"]
    try:
        lines, wrote = _last_lines(client, job_id, "stderr"), "stderr"
        if not lines:
            lines, wrote = _last_lines(client, job_id, "stdout"), "stdout"
    except AitbcError as error:
        more = f"; {error.hint}" if error.hint else ""
        return ["\n" + render.plain(f"what it wrote cannot be shown: {error.detail}{more}")]
    if not lines:
        return [f"\nit wrote nothing; more: aitbcctl get {job_id}"]
    head = f"\nthe end of its {wrote} (all of it: aitbcctl logs --stream {wrote} {job_id})"
    return [head] + [f"  {line}" for line in lines]


def _last_lines(client: Client, job_id: str, stream: str) -> list[str]:
    with client.open("GET", job_path(job_id, "logs", stream) + f"?tail={LINES}") as response:
        # A line need not have an end.
        text = response.read_at_most(LINES * 4096)
    return [render.plain(line)[:500] for line in text.decode(errors="replace").splitlines()]
