"""Curves out of ``logs/gpu.csv``, and how they are drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcctl import charts, curves, svg
from aitbcctl.commands import plot
from aitbcctl.curves import METRICS, Chart
from aitbcd.samples import HEADER
from tests.driver import GIB, uuid_of


def row(second: int, gpu: int = 0, used: float | str = 50, power: object = 300) -> str:
    minute, rest = divmod(second, 60)
    time = f"2026-02-13T10:{minute:02}:{rest:02}.5Z"
    return f"{time},{uuid_of(gpu)},{gpu},{used},{40 * GIB},,{power},61,1980,2619,99,1"


def courses(*rows: str) -> list[curves.Course]:
    return curves.read([HEADER.rstrip(), *rows])


def drawn(metric: str, *rows: str, count: int = 800) -> Chart:
    chart = curves.chart(courses(*rows), METRICS[metric], count)
    assert chart is not None
    return chart


def test_the_names_of_the_command_are_those_of_the_curves() -> None:
    assert tuple(METRICS) == plot.METRICS
    assert all(metric.column in HEADER for metric in METRICS.values())


def test_a_line_a_gpu_from_the_beginning_of_the_first_sample() -> None:
    chart = drawn("utilization", row(1, 0, 10), row(1, 1, 90), row(2, 0, 20), row(2, 1, 80))
    assert chart.lines == [("0", [[(1, 10), (2, 20)]]), ("1", [[(1, 90), (2, 80)]])]
    assert (chart.seconds, chart.top) == (2, 100)
    assert drawn("memory", row(1)).lines[0][1] == [[(1, 40)]]


def test_a_silence_and_what_the_driver_does_not_say_are_gaps() -> None:
    rows = [row(1), row(2), row(3, used=""), row(4), row(60), row(61)]
    ((_, parts),) = drawn("utilization", *rows).lines
    assert [[at for at, _ in part] for part in parts] == [[1, 2], [4], [60, 61]]
    assert curves.chart(courses(*rows), METRICS["job-memory"], 9) is None


def test_long_curves_are_thinned_by_means() -> None:
    rows = [row(second, used=second % 2 * 100) for second in range(1, 3001)]
    ((_, (part,)),) = drawn("utilization", *rows, count=300).lines
    assert len(part) == 300
    assert {value for _, value in part} == {50}


def test_devices_of_one_gpu_are_told_by_their_uuids() -> None:
    both = [row(1, gpu).replace(f",{gpu},", ",3,") for gpu in (0, 1)]
    assert [one.label for one in courses(*both)] == [f"3 {uuid_of(gpu)[:12]}" for gpu in (0, 1)]


NONSENSE = (
    "", ",", "x" * 500, row(1).replace("2026", "nine"), row(1).replace(",1", ",-1"),
    row(1, used="nan"), row(1, used="inf"), row(1, used="1e400"), row(1, used=-5), "\0,\0",
    row(1).replace("2026-", "9999999-"), row(1).replace("Z", ""), '"open', row(1) + ",more,more",
    row(1).rpartition(",")[0] + ",nan",
)  # fmt: skip


@given(st.lists(st.one_of(st.sampled_from(NONSENSE), st.text(max_size=60))))
def test_whatever_stands_in_the_file_is_drawn_or_left_out(lines: list[str]) -> None:
    found = courses(*lines, row(70), row(71))
    made = [curves.chart(found, metric, 50) for metric in METRICS.values()]
    text = charts.draw([one for one in made if one], 60, 30, has_colours=False, is_unicode=False)
    assert text.isascii()
    ET.fromstring(svg.picture("x", [one.label for one in found], [one for one in made if one]))


def test_a_file_without_a_row_has_no_course() -> None:
    assert courses() == []
    assert curves.read([]) == []
    assert courses(*NONSENSE[:4]) == []
    assert courses('"' + "x" * 200_000, row(1)) == []


@given(st.floats(1, 1e8), st.integers(1, 30))
def test_marks_on_the_axis_of_time_are_round_and_few(seconds: float, count: int) -> None:
    marks = curves.time_ticks(seconds, count)
    assert 1 <= len(marks) <= count + 1
    assert all(0 <= at <= seconds and at == int(at) for at, _ in marks)
    assert len({text for _, text in marks}) == len(marks)


@pytest.mark.parametrize(("most", "top"), [(0, 1), (0.3, 0.32), (45, 60), (100, 100), (699, 800)])
def test_other_axes_end_at_a_round_number(most: float, top: float) -> None:
    assert drawn("power", row(1, power=most)).top == pytest.approx(top)


def test_lines_without_colours_are_told_by_their_numbers() -> None:
    rows = [row(second, gpu, 20 + 60 * gpu) for second in range(1, 9) for gpu in (0, 1)]
    chart = drawn("utilization", *rows)
    plain = charts.draw([chart], 60, 12, has_colours=False, is_unicode=True)
    assert "000" in plain
    assert "111" in plain
    assert "\x1b" not in plain
    coloured = charts.draw([chart], 60, 12, has_colours=True, is_unicode=True)
    assert "\x1b[" in coloured
    assert plain.splitlines()[0] == "utilization, %"
    assert all(len(line) <= 60 for line in plain.splitlines())
    assert len(plain.splitlines()) <= 12


def test_a_picture_names_hostile_things_and_is_well_formed() -> None:
    chart = drawn("utilization", row(1), row(2))
    document = svg.picture("<b>&\"'", ["0"], [chart])
    root = ET.fromstring(document)
    assert "<b>&\"'" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_many_gpus_have_each_a_colour_or_dashes_of_their_own() -> None:
    rows = [row(second, gpu) for second in (1, 2) for gpu in range(16)]
    found = courses(*rows)
    document = svg.picture("x", [one.label for one in found], [drawn("utilization", *rows)])
    root = ET.fromstring(document)
    lines = {
        (path.get("stroke"), path.get("stroke-dasharray"))
        for path in root.iter("{http://www.w3.org/2000/svg}path")
        if path.get("stroke-width")
    }
    assert len(lines) == 16
