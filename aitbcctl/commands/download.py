"""``aitbcctl download``: a verified copy of a job's results."""

from __future__ import annotations

import os
from contextlib import closing

import click

from aitbcctl import checksums, options, package, render, sources
from aitbcctl.client import Client, Json, job_path
from aitbcctl.meter import Meter
from aitbcctl.refusals import Usage
from aitbcctl.terminal import leave, put, put_json, say
from aitbcd.errors import Forbidden, NoResults, NoSuchJob, WrongState
from aitbcd.manifest import FILE_NAME


@click.command("download")
@options.job_argument
@click.option(
    "--output",
    metavar="DIR",
    default=".",
    shell_complete=options.folders,
    help="Where job_<ID> is made; default: here.",
)
@click.option(
    "--format",
    "shape",
    type=click.Choice(["folder", "zip"]),
    default="folder",
    help="As it is (default), or as one job_<ID>.zip.",
)
@click.option(
    "--checksum",
    is_flag=True,
    help=f"Write {FILE_NAME} here, too, so that `sha256sum -c {FILE_NAME}` checks the copy.",
)
@click.option("--force", is_flag=True, help="Replace what is there under that name.")
@options.json_option("Print what was copied where.")
def command(
    job: str | None,
    job_id: str | None,
    output: str,
    shape: str,
    checksum: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Copy a job's results to DIR/job_<ID> and print that path.

    Each file is checked against output.sha256 while it is copied; under the final name there is
    the whole copy or none. A copy that is there already and the same is left as it is; anything
    else there is not overwritten without --force. Over HTTP an interrupted download goes on where
    it broke off.

    \b
    Examples:
      aitbcctl download job_7k3m9q2x --output ./results
      aitbcctl download @ --format zip
      aitbcctl download @ --checksum && sha256sum -c output.sha256
    """
    if not output:
        raise Usage("--output is empty: name a folder, or . for this one")
    if checksum and shape == "zip":
        raise Usage("--checksum is for a folder: a zip is verified while it is written")
    if checksum:
        checksums.check_is_free(force=force)
    client = options.client()
    details = _details(client, options.named_job(job, job_id))
    _check_has_results(details)
    job_id = str(details["job_id"])
    shown = os.path.normpath(os.path.join(output, job_id))
    shown += ".zip" if shape == "zip" else ""
    try:
        files, is_new = _copy(client, details, os.path.abspath(shown), shape, force)
        if checksum:
            checksums.write(os.path.join(output, job_id), *files)
    except KeyboardInterrupt:
        is_kept = os.path.lexists(package.partial_of(os.path.abspath(shown)))
        rest = "the same command goes on from what came" if is_kept else "nothing was left"
        leave(f"interrupted; {rest}")
    except sources.Corrupt as error:
        error.hint = f"what exactly differs: aitbcctl verify {job_id}"
        raise
    count = len(files[1]) + 1
    if as_json:
        path = os.path.abspath(shown)
        put_json({"job_id": job_id, "path": path, "files": count, "is_new": is_new})
    else:
        put(FILE_NAME if checksum else render.plain(shown))
    if not is_new:
        say(f"{render.plain(shown)} was there already, and is the same")
    if checksum and not as_json:
        say(f"it lists {count} files in {render.plain(shown)}: sha256sum -c {FILE_NAME}")
    return 0


def _details(client: Client, ref: str) -> Json:
    """Return what is known of the job; with whom it was shared sees its status only."""
    try:
        return client.get(job_path(ref), detail=True)
    except (Forbidden, NoSuchJob):
        return client.get(job_path(ref))


def _copy(
    client: Client, details: Json, target: str, shape: str, force: bool
) -> tuple[tuple[bytes, dict[bytes, str]], bool]:
    """Return the list (its text, what it says), and whether the copy is new."""
    job_id = details["job_id"]
    with closing(sources.source(client, job_id, details.get("result_path"))) as files:
        listed = sources.read_list(files, details.get("manifest_sha256"))
        if shape == "zip":
            from aitbcctl import archive

            return listed, archive.fetch(client, job_id, *listed, target, force=force)
        with Meter(_size(details)) as meter:
            return listed, package.copy(files, *listed, target, force=force, tell=meter.tell)


def _size(details: Json) -> int | None:
    """Return how many bytes are copied: result.txt is a file of its own in a copy."""
    files = details.get("files") or []
    if len(files) < details.get("files_total", 0) or not files:
        return details.get("result_bytes")
    return sum(file["size"] or 0 for file in files)


def _check_has_results(details: Json) -> None:
    job_id = details["job_id"]
    if not render.is_final(details):
        raise WrongState(
            f"{job_id} is {details['status']}: it has results when it is over",
            hint=f"wait for it: aitbcctl watch {job_id}",
            state=details["status"],
        )
    if details["results"] == "none":
        raise NoResults(f"{job_id} was {details['status']} before it started: it has no results")
    if details["results"] == "expired":
        at = f" on {render.when(details['expires_at'])}" if details.get("expires_at") else ""
        raise NoResults(f"the results of {job_id} expired{at} and were deleted")
