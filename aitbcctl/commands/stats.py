"""``aitbcctl stats``: how many jobs, how they ended, how long they took, what they cost."""

from __future__ import annotations

import click

from aitbcctl import options, tables, terminal
from aitbcctl.terminal import put, put_json


@click.command("stats")
@options.period_options
@click.option(
    "--by", type=click.Choice(["user", "name", "day"]), help="A line for each of these, too."
)
@click.option("--all", "is_all", is_flag=True, help="Everybody's; for administrators.")
@options.json_option("Print the numbers as the API gives them.")
def command(
    days: int | None,
    since: str | None,
    until: str | None,
    by: str | None,
    is_all: bool,
    as_json: bool,
) -> int:
    """Show statistics: jobs submitted, success rate, average completion time, total spent.

    Days are those of your time zone. Jobs that were deleted count.

    \b
    Examples:
      aitbcctl stats --days 30
      aitbcctl stats --by day --from 2026-01-01 --to 2026-01-31
    """
    from aitbcctl.zones import local_zone

    answer = options.client().get(
        "/v1/stats",
        **options.period(days, since, until),
        by=by,
        zone=local_zone(),
        all=is_all or None,
    )
    if as_json:
        put_json(answer)
        return 0
    put(tables.totals(answer["total"]))
    if answer.get("groups"):
        put("")
        put(tables.group_table(str(by), answer["groups"], terminal.columns(1)))
    return 0
