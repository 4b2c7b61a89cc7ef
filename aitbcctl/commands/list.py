"""``aitbcctl list``: one's jobs as a table, the newest first."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

import click

from aitbcctl import options, tables, terminal
from aitbcctl.client import Client, Json
from aitbcctl.render import plain
from aitbcctl.terminal import put, put_json, say

#: What the daemon gives in one page at most.
PAGE_MAX = 200


@click.command("list")
@options.filter_options
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most."
)
@click.option("--after", metavar="CURSOR", help="Go on where a list ended (its last line says).")
@options.json_option('Print {"jobs": [...], "next": CURSOR}.')
def command(limit: int, after: str | None, as_json: bool, **asked: Any) -> int:
    """List your jobs, the newest first.

    A date is a day of your time zone; a time can have a zone of its own (2026-01-31T10:00:00Z).

    \b
    Examples:
      aitbcctl list --status running
      aitbcctl list --from 2026-01-01 --to 2026-01-31
      aitbcctl list --days 7 --status failed --name 'sweep-*' --json
    """
    query = options.filters(**asked)
    jobs, cursor = _pages(options.client(), query, limit, after)
    if as_json:
        put_json({"jobs": jobs, "next": cursor})
    elif jobs:
        put(tables.job_table(jobs, terminal.columns(1), datetime.now(UTC)))
    else:
        say("no such jobs" if any(query.values()) else "no jobs")
    if cursor is not None and not as_json:
        words = ["aitbcctl", "list", *_respelled(asked), "--limit", str(limit), "--after", cursor]
        say(f"more: {plain(shlex.join(words))}")
    return 0


def _pages(
    client: Client, query: Json, limit: int, after: str | None
) -> tuple[list[Json], str | None]:
    jobs: list[Json] = []
    while True:
        wanted = min(PAGE_MAX, limit - len(jobs))
        page = client.get("/v1/jobs", **query, limit=wanted, after=after)
        jobs += page["jobs"]
        after = page["next"]
        if after is None or len(jobs) >= limit:
            return jobs, after


def _respelled(asked: Json) -> list[str]:
    """Return the options that were given, for the line that goes on."""
    words = [f"--status={status}" for status in asked["status"]]
    for name, flag in (
        ("days", "--days"), ("since", "--from"), ("until", "--to"), ("user", "--user"),
        ("name", "--name"), ("sort", "--sort"),
    ):  # fmt: skip
        if asked[name] is not None:
            words.append(f"{flag}={asked[name]}")
    return [*words, "--all"] if asked["is_all"] else words
