"""``aitbcctl queue``: what runs and what waits, everybody's, in order."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from aitbcctl import options, tables, terminal
from aitbcctl.client import Client, Json
from aitbcctl.render import plain
from aitbcctl.terminal import flush, put, put_json, say

#: What the daemon gives in one page at most.
PAGE_MAX = 200


@click.command("queue")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most."
)
@click.option("--after", metavar="CURSOR", help="Go on where it ended (its last line says).")
@options.json_option('Print {"jobs": [...], "next": CURSOR}.')
def command(limit: int, after: str | None, as_json: bool) -> int:
    """Show everybody's running and waiting jobs, in the order in which they go.

    Your own have a star. The note says until when a job runs at most or is expected to, and what a
    waiting one waits for.

    \b
    Example:
      aitbcctl queue
    """
    jobs, cursor = _pages(options.client(), limit, after)
    if as_json:
        put_json({"jobs": jobs, "next": cursor})
        return 0
    if jobs:
        put(tables.queue_table(jobs, terminal.columns(1), datetime.now(UTC)))
    else:
        say("nothing runs, and nothing waits")
    if cursor is not None:
        flush()
        say(f"more: aitbcctl queue --limit {limit} --after {plain(cursor)}")
    return 0


def _pages(client: Client, limit: int, after: str | None) -> tuple[list[Json], str | None]:
    jobs: list[Json] = []
    while True:
        page = client.get("/v1/queue", limit=min(PAGE_MAX, limit - len(jobs)), after=after)
        jobs += page["jobs"]
        after = page["next"]
        if after is None or len(jobs) >= limit:
            return jobs, after
