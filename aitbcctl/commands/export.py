"""``aitbcctl export``: the history of one's jobs as JSON or CSV."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from aitbcctl import options, terminal
from aitbcctl.files import written_whole
from aitbcctl.meter import Meter
from aitbcctl.render import plain, size
from aitbcctl.terminal import put, say
from aitbcd.errors import ClientFailure

Put = Callable[[bytes], object]


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
            for piece in answer.pieces():
                terminal.put_bytes(piece, 1)
            return 0
        with Meter(None) as meter, _written(output) as write:
            for piece in answer.pieces():
                write(piece)
                meter.tell(len(piece))
    put(plain(output))
    say(f"{size(meter.done)} of {kind.upper()}")
    return 0


@contextmanager
def _written(path: str) -> Iterator[Put]:
    """Give what writes a file that appears under its name at the end.

    Raises:
        ClientFailure: it could not be written; what was there is there.
    """
    try:
        if _is_special(path):
            with open(path, "wb") as file:
                yield file.write
        else:
            with written_whole(path) as write:
                yield write
    except OSError as error:
        raise ClientFailure(
            f"cannot write {path}: {error.strerror}", hint="choose another --output"
        ) from None


def _is_special(path: str) -> bool:
    """Tell whether a name stands for what is no file: /dev/stdout, a named pipe."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
