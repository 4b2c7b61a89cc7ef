"""Curves on a terminal, drawn by plotext. Imported only where something is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import plotext

from aitbcctl import glyphs
from aitbcctl.curves import Chart, time_ticks

#: As plotext calls the terminal's own colours; of two GPUs that share one a legend tells nothing.
_COLOURS = ("cyan+", "magenta+", "yellow+", "green+", "blue+", "red+", "white", "gray+")
_HEIGHT_LEAST, _HEIGHT_MOST = 7, 14
#: Columns beside the curves.
_AXIS = 8


def draw(
    charts: Sequence[Chart], width: int, height: int, *, has_colours: bool, is_unicode: bool
) -> str:
    """Return the charts below each other, ``height`` lines in all where that is enough."""
    lines = min(_HEIGHT_MOST, max(_HEIGHT_LEAST, height // max(len(charts), 1)))
    texts = [
        _chart(one, width, lines, has_colours=has_colours, is_unicode=is_unicode) for one in charts
    ]
    return "\n".join(texts)


def _chart(chart: Chart, width: int, height: int, *, has_colours: bool, is_unicode: bool) -> str:
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, height - 1)
    # Only the axes that are read.
    plotext.xaxes(True, False)
    plotext.yaxes(True, False)
    plotext.xlim(0, chart.seconds)
    plotext.ylim(0, chart.top)
    ticks = time_ticks(chart.seconds, max(1, width // 14))
    plotext.xticks([at for at, _ in ticks], [text for _, text in ticks])
    steps = [chart.top * part / 4 for part in range(0, 5, 1 if height > 9 else 2)]
    plotext.yticks(steps, [f"{step:g}".rjust(_AXIS - 3) for step in steps])
    for place, (label, parts) in enumerate(chart.lines):
        marker = "braille" if is_unicode else "*"
        if not has_colours and len(chart.lines) > 1:
            # The last character of its number is all there is to know a line by.
            marker = label[-1:]
        for part in parts:
            times, values = zip(*part)
            colour = _COLOURS[place % len(_COLOURS)]
            plotext.plot(list(times), list(values), marker=marker, color=colour)
    text = str(plotext.build())
    if not has_colours:
        text = str(plotext.uncolorize(text))
    lines = [chart.title, *(line.rstrip() for line in text.splitlines())]
    return "\n".join(lines) if is_unicode else "\n".join(map(glyphs.in_ascii, lines))


def legend(labels: Sequence[str], *, has_colours: bool) -> str:
    """Return which line is whose."""
    if not has_colours:
        return "  ".join(labels)
    return "  ".join(
        str(plotext.colorize(f"{label}", _COLOURS[place % len(_COLOURS)]))
        for place, label in enumerate(labels)
    )
