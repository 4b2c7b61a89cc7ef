"""``aitbcctl plot``: what a job's GPUs did, as curves in the terminal or as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from aitbcctl import following, glyphs, options, terminal
from aitbcctl.client import Client, Json, job_path
from aitbcctl.files import output_file
from aitbcctl.refusals import Refused, Usage
from aitbcctl.render import called, duration, plain
from aitbcctl.tables import cell, columns
from aitbcctl.terminal import put, put_json

if TYPE_CHECKING:
    from aitbcctl.curves import Course

#: ``curves.METRICS``; its import would cost each completion more than all the rest.
METRICS = ("utilization", "memory", "job-memory", "power", "temperature", "clock")
_USUAL = METRICS[0], METRICS[1], METRICS[3]
#: Far more than the daemon writes for any job.
_BYTES_MAX = 64 << 20
#: Where the output is no terminal.
_WIDTH, _HEIGHT = 80, 36
#: Columns of a job's id and name.
_TITLE_MAX = 50
#: Points of a line in a picture.
_POINTS = 800


@click.command("plot")
@options.job_argument
@click.option(
    "--metric",
    "metrics",
    type=click.Choice(METRICS),
    multiple=True,
    metavar="NAME",
    help=f"One of {', '.join(METRICS)}. Repeatable; if not said, {', '.join(_USUAL)}.",
)
@click.option(
    "--output",
    metavar="FILE",
    help="Write a picture instead, .svg or .png.",
    shell_complete=options.files,
)
@options.json_option('Print {"job_id": ..., "gpus": [{"uuid": ..., "time": [...], ...}]}.')
def command(
    job: str | None,
    job_id: str | None,
    metrics: tuple[str, ...],
    output: str | None,
    as_json: bool,
) -> int:
    """Draw what a job's GPUs did over time, a line a GPU; while it runs, so far.

    The figures are those of logs/gpu.csv in its results. A PNG needs the extra aitbcd[plot].

    \b
    Examples:
      aitbcctl plot @
      aitbcctl plot --metric temperature --metric clock job_7k3m9q2x
      aitbcctl plot --output gpus.svg @
    """
    kind = _kind_of(output)
    if as_json and output is not None:
        raise Usage("say --output or --json, not both")
    client = options.client()
    status = following.job(client, options.named_job(job, job_id))
    courses = _courses(client, status["job_id"])
    wanted = metrics or _USUAL
    if as_json:
        put_json({"job_id": status["job_id"], "gpus": [_as_json(one) for one in courses]})
    elif output is not None:
        _write(output, kind, f"{_title(status)} of {plain(status['user'])}", courses, wanted)
    else:
        _draw(_title(status), courses, wanted)
    return 0


def _title(job: Json) -> str:
    """Return what a job is called, on a part of a line."""
    text = called(job)
    return cell(text, min(columns(text), _TITLE_MAX))


def _kind_of(output: str | None) -> str:
    """Return ``svg`` or ``png``.

    Raises:
        Usage: the name says neither.
    """
    if output is None:
        return ""
    kind = os.path.splitext(output.lower())[1].removeprefix(".")
    if kind not in ("svg", "png"):
        raise Usage(f"--output {output} is no picture: its name has to end in .svg or .png")
    return kind


def _courses(client: Client, job_id: str) -> list[Course]:
    from aitbcctl import curves

    with client.open("GET", job_path(job_id, "logs", "gpu")) as response:
        text = response.read_at_most(_BYTES_MAX).decode(errors="replace")
    courses = curves.read(text.splitlines())
    if not courses:
        raise Refused(f"what is stored as the samples of {job_id} has no row that makes sense")
    return courses


def _as_json(course: Course) -> dict[str, object]:
    return {"uuid": course.uuid, "index": course.label, "time": course.times, **course.values}


def _draw(title: str, courses: Sequence[Course], metrics: Sequence[str]) -> None:
    from aitbcctl import charts, curves

    is_seen = terminal.is_shown(1)
    width = terminal.columns(1) or _WIDTH
    height = os.get_terminal_size(1).lines - 3 if is_seen else _HEIGHT
    looks = {
        "has_colours": is_seen and not os.environ.get("NO_COLOR"),
        "is_unicode": glyphs.is_unicode(os.environ),
    }
    # Of a character that shows two by four dots more would not be seen.
    found = [curves.chart(courses, curves.METRICS[name], 2 * width) for name in metrics]
    lasted = max(course.times[-1] for course in courses)
    labels = [course.label for course in courses]
    has_colours = looks["has_colours"]
    put(f"{title}, {duration(int(lasted))}, GPU {charts.legend(labels, has_colours=has_colours)}")
    put(charts.draw([chart for chart in found if chart], width, height, **looks))


def _write(
    output: str, kind: str, title: str, courses: Sequence[Course], metrics: Sequence[str]
) -> None:
    from aitbcctl import curves, svg

    found = [curves.chart(courses, curves.METRICS[name], _POINTS) for name in metrics]
    labels = [course.label for course in courses]
    document = svg.picture(title, labels, [chart for chart in found if chart])
    data = document.encode() if kind == "svg" else svg.rendered(document)
    with output_file(output) as write:
        write(data)
    put(plain(output))
