"""``aitbcctl delete`` and ``rm``: a job's results and its record go."""

from __future__ import annotations

from collections.abc import Sequence

import click

from aitbcctl import following, options, render
from aitbcctl.client import job_path
from aitbcctl.terminal import is_meant, put, put_json, say


@click.command("delete")
@options.job_arguments
@click.option("-y", "--yes", "--force", "is_sure", is_flag=True, help="Do not ask.")
@options.json_option("Print what was freed.")
def command(named: Sequence[str], job_id: str | None, is_sure: bool, as_json: bool) -> int:
    """Delete jobs: their results from the disk, and the jobs from every list.

    Asks first, on a terminal only. What they used and cost stays in the statistics. A job that is
    not over is refused, and no other one is deleted then: cancel it first. rm is the same verb.

    \b
    Examples:
      aitbcctl delete job_7k3m9q2x
      aitbcctl rm --force 42 43 44
    """
    client = options.client()
    jobs = following.jobs(client, options.named_jobs(named, job_id))
    # The daemon refuses what is not over: before anything is gone.
    jobs.sort(key=render.is_final)
    if render.is_final(jobs[0]) and not (is_sure or is_meant(_question(jobs))):
        say("not deleted")
        return 1
    answers = []
    for job in jobs:
        answer = client.delete(job_path(job["job_id"]))
        answers.append(answer)
        if not as_json:
            put(f"{answer['job_id']} deleted, {_freed(answer)}")
    if as_json:
        put_json(answers[0] if len(jobs) == 1 else {"jobs": answers})
    return 0


def _freed(answer: render.Json) -> str:
    if remaining := answer.get("remaining_bytes"):
        return f"{render.size(remaining)} to be freed: somebody reads them, or that takes a while"
    return f"{render.size(answer['freed_bytes'])} freed"


def _question(jobs: list[render.Json]) -> str:
    if len(jobs) > 1:
        return f"Delete {len(jobs)} jobs and their results: {', '.join(map(render.called, jobs))}?"
    results = " and its results" if jobs[0].get("results") == "kept" else ""
    return f"Delete {render.called(jobs[0])}{results}?"
