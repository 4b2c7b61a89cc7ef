"""``aitbcctl list``: one's jobs as a table, the newest first."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from aitbcctl import options, render, terminal
from aitbcctl.client import Client, Json
from aitbcctl.terminal import put, put_json, say
from aitbcd.model import JobState

#: What the daemon gives in one page at most.
PAGE_MAX = 200


@click.command("list")
@click.option(
    "--status",
    type=click.Choice([state.value for state in JobState]),
    help="Only jobs in this state.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most."
)
@click.option("--after", metavar="CURSOR", help="Go on where a list ended (its last line says).")
@options.json_option('Print {"jobs": [...], "next": CURSOR}.')
def command(status: str | None, limit: int, after: str | None, as_json: bool) -> int:
    """List your jobs, the newest first.

    \b
    Examples:
      aitbcctl list --status running
      aitbcctl list --json --limit 1000
    """
    jobs, cursor = _pages(options.client(), status, limit, after)
    if as_json:
        put_json({"jobs": jobs, "next": cursor})
    elif jobs:
        put(render.job_table(jobs, terminal.columns(1), datetime.now(UTC)))
    else:
        say("no jobs" if status is None else f"no {status} jobs")
    if cursor is not None and not as_json:
        only = "" if status is None else f" --status {status}"
        say(f"older ones: aitbcctl list{only} --limit {limit} --after {render.plain(cursor)}")
    return 0


def _pages(
    client: Client, status: str | None, limit: int, after: str | None
) -> tuple[list[Json], str | None]:
    jobs: list[Json] = []
    while True:
        wanted = min(PAGE_MAX, limit - len(jobs))
        page = client.get("/v1/jobs", status=status, limit=wanted, after=after)
        jobs += page["jobs"]
        after = page["next"]
        if after is None or len(jobs) >= limit:
            return jobs, after
