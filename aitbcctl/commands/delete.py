"""``aitbcctl delete`` and ``rm``: a job's results and its record go."""

from __future__ import annotations

import click

from aitbcctl import following, options, render
from aitbcctl.client import job_path
from aitbcctl.terminal import is_meant, put, put_json, say


@click.command("delete")
@options.job_argument
@click.option("-y", "--yes", "--force", "is_sure", is_flag=True, help="Do not ask.")
@options.json_option("Print what was freed.")
def command(job: str | None, job_id: str | None, is_sure: bool, as_json: bool) -> int:
    """Delete a job: its results from the disk, and the job from every list.

    Asks first, on a terminal only. What it used and cost stays in the statistics. A job that is
    not over is refused: cancel it first. rm is the same verb.

    \b
    Examples:
      aitbcctl delete job_7k3m9q2x
      aitbcctl rm --force 42
    """
    client = options.client()
    status = following.job(client, options.named_job(job, job_id))
    if not (is_sure or not render.is_final(status) or is_meant(_question(status))):
        say("not deleted")
        return 1
    answer = client.delete(job_path(status["job_id"]))
    if as_json:
        put_json(answer)
    else:
        put(f"{answer['job_id']} deleted, {render.size(answer['freed_bytes'])} freed")
    return 0


def _question(status: render.Json) -> str:
    results = " and its results" if status.get("results") == "kept" else ""
    return f"Delete {render.called(status)}{results}?"
