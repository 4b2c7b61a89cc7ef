"""What the verbs share: how a job is named, ``--json``, the client."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from aitbcctl.client import Client
from aitbcctl.refusals import Usage

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_Command = Callable[..., Any]


def job_argument(function: _Command) -> _Command:
    """Give a verb its job: ``ID`` or ``--job-id ID``; ``named_job`` reads the two."""
    function = click.option("--job-id", metavar="ID", help="The same as ID.")(function)
    return click.argument("job", metavar="[ID]", required=False)(function)


def folders(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Let the shell complete a folder: what is wrong with one, the verb says in its own words."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="dir")]


def json_option(text: str) -> Callable[[_Command], _Command]:
    """Give a verb ``--json``, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def named_job(job: str | None, job_id: str | None) -> str:
    """Return the one job that was named.

    Raises:
        Usage: both or none were given.
    """
    if job is not None and job_id is not None:
        raise Usage(f"name the job once: you gave {job!r} and --job-id {job_id!r}")
    ref = job if job_id is None else job_id
    if not ref:
        raise Usage("name the job: its id, number or unique prefix, or @ for your latest one")
    return ref


def client() -> Client:
    """Return a client for the daemon that this environment names."""
    return Client(os.environ)
