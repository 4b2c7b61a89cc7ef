"""CSV that other programs read back, and that runs nothing."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd import spreadsheet

BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "\n")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


def read(line: bytes) -> list[str]:
    (cells,) = csv.reader(io.StringIO(line.decode(), newline=""), strict=True)
    return cells


@given(st.lists(TEXT, min_size=1))
def test_what_is_written_is_read_back(cells: list[str]) -> None:
    line = spreadsheet.row(["first", *cells])
    assert line.endswith(b"\r\n")
    assert [cell.removeprefix("'") for cell in read(line)[1:]] == [
        cell.removeprefix("'") for cell in cells
    ]


@given(st.sampled_from(BEGINNINGS), TEXT)
def test_no_cell_begins_like_a_formula(beginning: str, rest: str) -> None:
    assert read(spreadsheet.row([beginning + rest])) == [f"'{beginning}{rest}"]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, b""), (-5, b"-5"), (0.05, b"0.05"), (8.6e-05, b"0.000086"), (3.0, b"3.0"),
        (True, b"true"), ("plain", b"plain"),
        ("a,b", b'"a,b"'), ('say "hi"', b'"say ""hi"""'), ("two\nlines", b'"two\nlines"'),
        ('=HYPERLINK("http://x","y")', b'"\'=HYPERLINK(""http://x"",""y"")"'),
        (" =1+1", b"' =1+1"), ("a-b", b"a-b"), ("\uff1d1", "'\uff1d1".encode()),
    ],
)  # fmt: skip
def test_cells_are_written_as_spreadsheets_expect(value: object, cell: bytes) -> None:
    assert spreadsheet.row([value]) == cell + b"\r\n"
