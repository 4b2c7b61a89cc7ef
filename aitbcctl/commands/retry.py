"""``aitbcctl retry``: the same job once more, as a new one."""

from __future__ import annotations

import click

from aitbcctl import options
from aitbcctl.client import job_path
from aitbcctl.terminal import put, put_json


@click.command("retry")
@options.job_argument
@options.json_option("Print the status of the new job.")
def command(job: str | None, job_id: str | None, as_json: bool) -> int:
    """Submit a job that is over once more, as it was: command, directory, environment, requests.

    Prints the new job's id; its status names the one that it repeats.

    \b
    Example:
      aitbcctl watch $(aitbcctl retry @)
    """
    status = options.client().post(job_path(options.named_job(job, job_id), "retry"))
    put_json(status) if as_json else put(status["job_id"])
    return 0
