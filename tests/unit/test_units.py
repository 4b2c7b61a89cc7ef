from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd.units import (
    DURATION_MAX_S,
    DURATION_PATTERN,
    MEMORY_PATTERN,
    SIZE_MAX,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90), (90, 90), (1.5, 1.5), ("0", 0), ("2h", 7200), ("1h30m", 5400),
        ("1h 30m", 5400), ("7d", 604800), ("1.5h", 5400), ("250ms", 0.25), ("2 hours", 7200),
        ("1w", 604800), ("10S", 10), (" 5m ", 300), ("5mins", 300),
    ],
)  # fmt: skip
def test_durations_as_people_write_them(written: str | float, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    ["", " ", "x", "-3", "1h30", "30 1h", "1e400", "2y", "1..5h", "h", "٣s", True, None, math.nan],
)
def test_what_is_no_duration_is_refused_with_examples(written: object) -> None:
    with pytest.raises(ValueError, match="for example 90, 2h or 1h30m"):
        parse_duration(written)  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["99999999d", -1, -0.5, math.inf, 10**400])
def test_a_duration_out_of_range_is_refused(written: str | float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (12, 12), ("12", 12), ("1K", 1024), ("500M", 500 * 2**20), ("16G", 16 * 2**30),
        ("40GiB", 40 * 2**30), ("40gb", 40 * 2**30), ("1.5G", 3 * 2**29), ("2 T", 2**41),
        ("512b", 512), ("0", 0),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(written: str | int, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written", ["", "G", "16X", "16GG", "-1", "1e3", "9" * 5000, True, 1.5, None]
)
def test_what_is_no_size_is_refused_with_examples(written: object) -> None:
    with pytest.raises(ValueError, match="for example 500M, 16G or 40GiB"):
        parse_size(written)  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["99999999T", -1, 2**63, "9" * 40, "9" * 40 + ".5K"])
def test_a_size_out_of_range_is_refused(written: str | int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        parse_size(written)


@given(st.text() | st.floats() | st.integers())
def test_any_input_is_a_duration_in_range_or_a_value_error(written: str | float) -> None:
    try:
        seconds = parse_duration(written)
    except ValueError:
        return
    assert 0 <= seconds <= DURATION_MAX_S


@given(st.text() | st.integers())
def test_any_input_is_a_size_in_range_or_a_value_error(written: str | int) -> None:
    try:
        size = parse_size(written)
    except ValueError:
        return
    assert 0 <= size <= SIZE_MAX


@given(st.integers(min_value=0, max_value=2**60))
def test_a_shown_size_reads_back_within_its_last_digit(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size * 0.1


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 B"), (512, "512 B"), (1024, "1 KiB"), (1536 * 2**20, "1.5 GiB")]
)
def test_sizes_are_shown_with_one_decimal(size: int, shown: str) -> None:
    assert format_size(size) == shown


@given(st.from_regex(DURATION_PATTERN, fullmatch=True))
def test_what_the_pattern_calls_a_duration_is_one(written: str) -> None:
    assert 0 < parse_duration(written) <= DURATION_MAX_S


@given(st.from_regex(MEMORY_PATTERN, fullmatch=True))
def test_what_the_pattern_calls_an_amount_of_memory_is_one(written: str) -> None:
    assert 0 < parse_size(written) <= SIZE_MAX


@pytest.mark.parametrize("written", ["90", "2h", "1h 30m", "7d", "250ms", ".5h", "1d2h3m"])
def test_the_pattern_knows_durations_as_people_write_them(written: str) -> None:
    assert re.search(DURATION_PATTERN, written)


@pytest.mark.parametrize("written", ["500M", "16G", "40GiB", "1.5t", " 2 mb ", "17179869184"])
def test_the_pattern_knows_amounts_of_memory_as_people_write_them(written: str) -> None:
    assert re.search(MEMORY_PATTERN, written)


@pytest.mark.parametrize("written", ["0", "16", "16.5", "40 kB", "999999"])
def test_the_pattern_knows_where_a_unit_was_forgotten(written: str) -> None:
    assert not re.search(MEMORY_PATTERN, written)
