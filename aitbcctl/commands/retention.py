"""``aitbcctl retention``: which results are deleted when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from aitbcctl import options, tables, terminal
from aitbcctl.client import Json
from aitbcctl.render import plain, size, when
from aitbcctl.terminal import put, put_json, say


@click.group("retention", invoke_without_command=True)
@click.option("--dry-run", is_flag=True, help="List what will be deleted, and when.")
@click.option("--all", "is_all", is_flag=True, help="Everybody's; for administrators.")
@options.json_option("Print it as the API gives it.")
@click.pass_context
def command(ctx: click.Context, dry_run: bool, is_all: bool, as_json: bool) -> int:
    """Say whether expired results are being deleted, and what goes next.

    \b
    Examples:
      aitbcctl retention --dry-run
      aitbcctl retention resume
    """
    if ctx.invoked_subcommand is not None:
        return 0
    client = options.client()
    answer = client.get("/v1/retention", all=is_all or None, limit=None if dry_run else 1)
    jobs = list(answer["jobs"])
    while dry_run and answer["next"] is not None:
        answer = client.get("/v1/retention", all=is_all or None, after=answer["next"])
        jobs += answer["jobs"]
    if as_json:
        put_json({"stopped": answer["stopped"], "jobs": jobs})
        return 0
    put(_state(answer["stopped"]))
    if dry_run and jobs:
        put(tables.expiry_table(jobs, terminal.columns(1), datetime.now(UTC)))
    elif jobs:
        put(_next(jobs[0]))
    else:
        say("no results are kept")
    return 0


@command.command("resume")
@options.json_option("Print what goes on.")
def resume(as_json: bool) -> int:
    """Go on deleting what expired, after the clock jumped.

    For administrators and the user of the daemon. Look at the clock first.

    \b
    Example:
      date && aitbcctl retention resume
    """
    answer: Any = options.client().post("/v1/retention/resume")
    put_json(answer) if as_json else put(_state(answer.get("stopped")))
    return 0


def _state(stopped: Json | None) -> str:
    if stopped is None:
        return "results are deleted when they expire"
    return (
        f"nothing is deleted since {when(stopped['since'])}: {plain(stopped['reason'])}\n"
        "  when the clock is right: aitbcctl retention resume"
    )


def _next(job: Json) -> str:
    return (
        f"next: {job['job_id']}, {size(job['result_bytes'])}, on {when(job['expires_at'])}"
        "  (all: aitbcctl retention --dry-run)"
    )
