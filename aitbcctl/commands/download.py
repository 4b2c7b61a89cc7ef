"""``aitbcctl download``: a verified copy of a job's results."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing

import click

from aitbcctl import options, package, render, terminal
from aitbcctl.client import Json, job_path
from aitbcctl.terminal import put, put_json, say
from aitbcd.errors import NoResults, WrongState


@click.command("download")
@options.job_argument
@click.option("--output", metavar="DIR", default=".", help="Where job_<ID> is made; default: here.")
@click.option("--force", is_flag=True, help="Replace what is there under that name.")
@options.json_option("Print what was copied where.")
def command(job: str | None, job_id: str | None, output: str, force: bool, as_json: bool) -> int:
    """Copy a job's results to DIR/job_<ID> and print that path.

    Each file is checked against output.sha256 while it is copied; under the final name there is
    the whole copy or none. A copy that is there already and the same is left as it is; anything
    else there is not overwritten without --force.

    \b
    Example:
      aitbcctl download job_7k3m9q2x --output ./results
      (cd ./results/job_7k3m9q2x && sha256sum -c output.sha256)
    """
    client = options.client()
    details = client.get(job_path(options.named_job(job, job_id)), detail=True)
    _check_has_results(details)
    job_id = str(details["job_id"])
    target = os.path.join(os.path.abspath(output), job_id)
    with closing(package.source(client, job_id, details.get("result_path"))) as files:
        text, digests = package.read_list(files, details.get("manifest_sha256"))
        progress = _Progress(details.get("result_bytes") or 0)
        is_new = package.copy(files, text, digests, target, force=force, tell=progress.tell)
        progress.end()
    shown = os.path.join(output, job_id)
    if as_json:
        put_json({"job_id": job_id, "path": target, "files": len(digests) + 1, "is_new": is_new})
    else:
        put(shown)
    if not is_new:
        say(f"{shown} was there already, and is the same")
    return 0


def _check_has_results(details: Json) -> None:
    job_id = details["job_id"]
    if not render.is_final(details):
        raise WrongState(
            f"{job_id} is {details['status']}: it has results when it ended",
            hint=f"wait for it: aitbcctl watch {job_id}",
            state=details["status"],
        )
    if details["results"] == "none":
        raise NoResults(f"{job_id} was {details['status']} before it started: it has no results")
    if details["results"] == "expired":
        raise NoResults(f"the results of {job_id} expired and were deleted")


class _Progress:
    """A counter on the terminal, for copies that take longer than a moment."""

    def __init__(self, total: int) -> None:
        self._total = render.size(total)
        self._is_shown = terminal.is_shown(2)
        self._copied = 0
        self._next_at = time.monotonic() + 0.5
        self._is_drawn = False

    def tell(self, count: int) -> None:
        self._copied += count
        if self._is_shown and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + 0.2
            self._is_drawn = True
            sys.stderr.write(f"\r\x1b[K{render.size(self._copied)} of {self._total}")
            sys.stderr.flush()

    def end(self) -> None:
        if self._is_drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
