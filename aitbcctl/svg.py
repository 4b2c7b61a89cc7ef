"""Curves as an SVG picture (SVG 1.1), and that as a PNG.

SVG is text, so that a picture costs no dependency. A PNG needs one that renders: resvg, which is
small and needs no library of the system; matplotlib would bring 170 MB for the same lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from html import escape

from aitbcctl.curves import Chart, Point, time_ticks
from aitbcctl.terminal import say
from aitbcd.errors import ClientFailure

#: Told apart by whoever does not see all colours (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888")
#: Lines beyond the colours are told by their dashes.
_DASHES = ("", "6 3", "2 2", "8 3 2 3")
_WIDTH, _LEFT, _RIGHT, _TOP = 860, 62, 18, 64
#: Of a chart's field, and from one to the next.
_FIELD, _STEP = 130, 186
_TICKS_X, _TICKS_Y = 8, 4
_FONT = "font-family='system-ui, Helvetica, Arial, DejaVu Sans, sans-serif'"
_GREY, _PALE = "#57606a", "#e4e7ea"
#: A screen of today has twice the pixels.
_ZOOM = 2.0
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts")


def picture(title: str, labels: Sequence[str], charts: Sequence[Chart]) -> str:
    """Return the charts below each other as a document; a GPU has one colour in all of them."""
    height = _TOP + _STEP * len(charts)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}'"
        f" width='{_WIDTH}' height='{height}' {_FONT} font-size='12'>",
        f"<rect width='{_WIDTH}' height='{height}' fill='#ffffff'/>",
        f"<text x='{_LEFT}' y='26' font-size='15' font-weight='600'>{escape(title)}</text>",
        *_legend(labels),
    ]
    for place, chart in enumerate(charts):
        parts.append(f"<g transform='translate({_LEFT} {_TOP + 16 + place * _STEP})'>")
        parts += _chart(chart, labels)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _legend(labels: Sequence[str]) -> Iterator[str]:
    x = _LEFT
    for label in labels:
        if x > _WIDTH - 80:
            yield f"<text x='{x}' y='48' fill='{_GREY}'>…</text>"
            return
        yield f"<path d='M{x} 44h18' {_stroke(labels, label)}/>"
        yield f"<text x='{x + 23}' y='48' fill='{_GREY}'>GPU {escape(label)}</text>"
        x += 66 + 7 * len(label)


def _chart(chart: Chart, labels: Sequence[str]) -> Iterator[str]:
    field = _WIDTH - _LEFT - _RIGHT
    yield f"<text y='-8' fill='#24292f' font-weight='600'>{escape(chart.title)}</text>"
    for part in range(_TICKS_Y + 1):
        value, y = chart.top * part / _TICKS_Y, _FIELD - _FIELD * part / _TICKS_Y
        yield f"<path d='M0 {y:g}h{field}' stroke='{_PALE}'/>"
        yield f"<text x='-8' y='{y + 4:g}' text-anchor='end' fill='{_GREY}'>{value:g}</text>"
    for at, text in time_ticks(chart.seconds, _TICKS_X):
        x = field * at / chart.seconds
        yield f"<path d='M{x:.1f} {_FIELD}v4' stroke='{_GREY}'/>"
        anchor = "end" if x > field - 20 else "middle"
        place = f"x='{x:.1f}' y='{_FIELD + 18}' text-anchor='{anchor}'"
        yield f"<text {place} fill='{_GREY}'>{text}</text>"
    for label, parts in chart.lines:
        line = "".join(_path(part, field / chart.seconds, _FIELD / chart.top) for part in parts)
        yield f"<path d='{line}' {_stroke(labels, label)}/>"


def _path(points: Sequence[Point], by_x: float, by_y: float) -> str:
    places = [f"{x * by_x:.1f} {_FIELD - y * by_y:.1f}" for x, y in points]
    # One point alone is a dot: a line of no length with round ends.
    return "M" + "L".join(places if len(places) > 1 else places * 2)


def _stroke(labels: Sequence[str], label: str) -> str:
    place = labels.index(label)
    dashes = _DASHES[place // len(_COLOURS) % len(_DASHES)]
    return (
        f"fill='none' stroke='{_COLOURS[place % len(_COLOURS)]}' stroke-width='1.5'"
        " stroke-linejoin='round' stroke-linecap='round'"
        + (f" stroke-dasharray='{dashes}'" if dashes else "")
    )


def rendered(document: str) -> bytes:
    """Return a document as a PNG.

    Raises:
        ClientFailure: what renders is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise ClientFailure(
            "a PNG needs the package resvg-py, which is not installed",
            hint="pip install 'aitbcd[plot]', or write an SVG: --output FILE.svg",
        ) from None
    folders = [os.path.expanduser(folder) for folder in _FONT_FOLDERS]
    if not any(files for folder in folders for _, _, files in os.walk(folder)):
        say("there are no fonts here, so the picture has no words; an SVG has them")
    return resvg_py.svg_to_bytes(svg_string=document, zoom=_ZOOM)
