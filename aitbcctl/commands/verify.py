"""``aitbcctl verify``: are a job's results byte for byte what was sealed?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from functools import partial

import click

from aitbcctl import options, render
from aitbcctl.client import Json, job_path
from aitbcctl.refusals import Usage
from aitbcctl.terminal import put, put_json, say
from aitbcd import manifest

_MEANING = {
    "changed": "its content differs from its checksum",
    "missing": "it is listed, but not there",
    "extra": "it is there, but not listed",
    "manifest": "the list of checksums itself was changed",
}


@click.command("verify")
@partial(options.job_arguments, metavar="[ID]")
@click.option(
    "--path",
    metavar="DIR",
    shell_complete=options.folders,
    help="Check this copy (a folder, or a zip) instead of the stored results; a daemon that "
    "knows the job is asked for its list's checksum, and none is needed.",
)
@options.json_option("Print the answer as the API gives it.")
def command(named: Sequence[str], job_id: str | None, path: str | None, as_json: bool) -> int:
    """Check a job's results; names each changed, missing and extra file.

    The exit code is 0 when everything is as it was sealed, 1 otherwise.

    \b
    Examples:
      aitbcctl verify job_7k3m9q2x
      aitbcctl verify --path results/job_7k3m9q2x
    """
    _check_is_one(named, path)
    job = next(iter(named), None)
    if path is None:
        # As long as it takes: a package can have terabytes.
        target = job_path(options.named_job(job, job_id), "verify")
        answer = options.client().post(target, timeout_s=None)
    else:
        from aitbcctl import copies

        ref = None if job is None and job_id is None else options.named_job(job, job_id)
        answer = copies.verify(options.client(), ref, path)
    put_json(answer) if as_json else put(_lines(answer))
    if not answer["ok"] and not as_json:
        count = len(answer["differences"])
        say(f"verification failed: {count} difference{'s' * (count != 1)}")
    return 0 if answer["ok"] else 1


def _check_is_one(named: Sequence[str], path: str | None) -> None:
    """Refuse what a pattern of the shell became: many copies, where one was meant."""
    if path is not None and named and (len(named) > 1 or "/" in named[0]):
        copies = os.path.join(os.path.dirname(path) and shlex.quote(os.path.dirname(path)), "job_*")
        raise Usage(
            "--path takes one copy, and you gave several",
            hint=f'for copy in {copies}; do aitbcctl verify --path "$copy"; done',
        )
    if len(named) > 1:
        raise Usage(f"verify takes one job, and you gave {' '.join(named)}")


def _lines(answer: Json) -> str:
    if answer["ok"]:
        return f"verified: {answer['files']} files, {render.size(answer['bytes'])}, all as sealed"
    return "\n".join(
        f"{one['kind']:<8}  {render.plain(render.text_of(one['path']))}  ({_meaning(one)})"
        for one in answer["differences"]
    )


def _meaning(difference: Json) -> str:
    kind = difference["kind"]
    if kind == "missing" and difference["path"] == manifest.FILE_NAME:
        return "the list of checksums itself is gone: nothing tells what else was sealed"
    return _MEANING.get(kind, str(kind))
