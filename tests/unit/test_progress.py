from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd import progress


@pytest.mark.parametrize(
    ("written", "percent"),
    [
        (b"", None), (b"\n\n", None), (b"45", 45), (b"45\n", 45), (b"45%\n", 45),
        (b"45\n46.9\n", 46),
        (b"3/4", 75), (b" 3 / 4 \n", 75), (b"1.5/3", 50), (b"3/0", None), (b"99.99", 99),
        (b"200", 100), (b"10/5", 100), (b"words", None), (b"100\nwords\n", 100),
        (b"10\r20\r30", 30), (b"-5", None), (b"nan", None), (b"1e2", None), (b"\xff\xfe7", None),
    ],
)  # fmt: skip
def test_the_last_line_that_is_a_number_or_a_ratio_counts(
    written: bytes, percent: int | None
) -> None:
    assert progress.from_file(written) == percent


@pytest.mark.parametrize(
    ("log", "percent"),
    [
        (b"", None),
        (b"loss 0.3 (45% done)\n", None),
        (b" 45%|####      | 45/100 [00:01<00:01, 30it/s]", 45),
        (b"epoch:   7%|\xe2\x96\x8b  | 7/100 [00:01<?]\repoch:   8%|\xe2\x96\x8b | 8/100", 8),
        (b"100%|##########| 9/9 [00:00<00:00]\nsaved\n", 100),
        (b"1234%|#| 3/4", None),
        (b"45%|####", None),
    ],
)  # fmt: skip
def test_the_last_tqdm_bar_counts(log: bytes, percent: int | None) -> None:
    assert progress.from_stderr(log) == percent


@given(st.binary(max_size=progress.TAIL_BYTES))
def test_any_bytes_give_a_percentage_or_nothing(tail: bytes) -> None:
    for percent in (progress.from_file(tail), progress.from_stderr(tail)):
        assert percent is None or 0 <= percent <= 100


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_hundred_is_said_only_when_all_is_done(done: int, total: int) -> None:
    percent = progress.from_file(b"%d/%d\n" % (done, total))
    assert (percent == 100) == (done >= total)
