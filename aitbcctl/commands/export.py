"""``aitbcctl export``: the history of one's jobs as JSON or CSV."""

from __future__ import annotations

from typing import Any

import click

from aitbcctl import options
from aitbcctl.files import output_file
from aitbcctl.meter import Meter
from aitbcctl.render import plain, size
from aitbcctl.terminal import put, put_document, say


@click.command("export")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["json", "csv"]),
    help="Default: what the file's name ends in, else json.",
)
@click.option(
    "--output",
    metavar="FILE",
    default="-",
    help="Where to; - (the default) is stdout.",
    shell_complete=options.files,
)
@options.filter_options
def command(shape: str | None, output: str, **asked: Any) -> int:
    """Write the history of your jobs: one JSON array, or CSV that a spreadsheet can open.

    The file is there whole or not at all; one of that name is replaced.

    \b
    Examples:
      aitbcctl export --format csv --output jobs.csv
      aitbcctl export --status failed --days 30 | jq '.[].message'
    """
    query = options.filters(**asked)
    kind = shape or ("csv" if output.endswith(".csv") else "json")
    client = options.client()
    with client.stream("/v1/export", format=kind, **query) as answer:
        if output == "-":
            put_document(answer.pieces())
            return 0
        with Meter(None) as meter, output_file(output) as write:
            for piece in answer.pieces():
                write(piece)
                meter.tell(len(piece))
    put(plain(output))
    say(f"{size(meter.done)} of {kind.upper()}")
    return 0
