"""``aitbcctl list``: one's jobs as a table, the newest first."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

import click

from aitbcctl import options, tables, terminal
from aitbcctl.client import Client, Json
from aitbcctl.refusals import Usage
from aitbcctl.render import plain
from aitbcctl.terminal import flush, put, put_document, put_json, say

#: What the daemon gives in one page at most.
PAGE_MAX = 200
#: Of a line of CSV; export has more.
_COLUMNS = (
    "job_id", "number", "user", "name", "status", "reason", "cause", "message", "exit_code",
    "signal", "created_at", "started_at", "finished_at", "attempt", "progress", "charge",
    "currency", "results", "expires_at", "retry_of", "command_line",
)  # fmt: skip


@click.command("list")
@options.filter_options
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most."
)
@click.option("--after", metavar="CURSOR", help="Go on where a list ended (its last line says).")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["table", "json", "csv", "ids"]),
    help="Default: a table. Ids are one a line.",
)
@options.json_option('As --format json: {"jobs": [...], "next": CURSOR}.')
def command(limit: int, after: str | None, shape: str | None, as_json: bool, **asked: Any) -> int:
    """List your jobs, the newest first.

    A date is a day of your time zone; a time can have a zone of its own (2026-01-31T10:00:00Z).

    \b
    Examples:
      aitbcctl list --status running
      aitbcctl list --from 2026-01-01 --to 2026-01-31
      aitbcctl list --days 7 --status failed --name 'sweep-*' --json
      aitbcctl list --status pending --format ids | xargs -r aitbcctl cancel -y
    """
    if as_json and shape not in (None, "json"):
        raise Usage(f"--json and --format {shape} are two things")
    query = options.filters(**asked)
    jobs, cursor = _pages(options.client(), query, limit, after)
    if as_json or shape == "json":
        put_json({"jobs": jobs, "next": cursor})
        return 0
    if shape == "csv":
        _put_csv(jobs)
    elif jobs and shape == "ids":
        put("\n".join(job["job_id"] for job in jobs))
    elif jobs:
        put(tables.job_table(jobs, terminal.columns(1), datetime.now(UTC)))
    else:
        say("no such jobs" if any(query.values()) else "no jobs")
    if cursor is not None:
        flush()
        given = _respelled(asked) + ([] if shape is None else [f"--format={shape}"])
        words = ["aitbcctl", "list", *given, "--limit", str(limit), "--after", cursor]
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


def _put_csv(jobs: list[Json]) -> None:
    from aitbcd.spreadsheet import row

    lines = (_COLUMNS, *([job.get(column) for column in _COLUMNS] for job in jobs))
    put_document(map(row, lines))


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
