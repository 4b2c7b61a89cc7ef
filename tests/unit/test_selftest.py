"""How what a test of a GPU measured is judged."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcctl.selftest.devices import (
    FAILED,
    GOOD,
    PUBLISHED,
    SHARES,
    Check,
    Figures,
    judged,
    not_as_allotted,
    table,
    verdict,
    word,
)

A, B = "GPU-00000000-0000-4000-8000-00000000000a", "GPU-00000000-0000-4000-8000-00000000000b"
models = st.sampled_from(sorted(PUBLISHED))
kinds = st.sampled_from(Figures._fields)


@given(models, kinds, st.floats(0, 1e5))
def test_a_known_model_has_to_reach_its_part_of_what_is_published(
    model: str, kind: str, measured: float
) -> None:
    check = judged(Check(kind, is_right=True, value=measured), kind, model)
    published = getattr(PUBLISHED[model], kind)
    is_enough = published is None or measured >= published * getattr(SHARES, kind)
    assert (check.failure is None) == is_enough
    assert verdict([check])[0] == (GOOD if is_enough else FAILED)


@given(kinds, st.floats(0, 1e5), st.booleans())
def test_an_unknown_model_is_judged_by_what_it_computes_alone(
    kind: str, measured: float, is_right: bool
) -> None:
    check = judged(Check(kind, is_right=is_right, value=measured), kind, "NVIDIA X1")
    assert (check.failure is None) == is_right


@given(st.lists(st.sampled_from([None, True, False]), max_size=8))
def test_one_failure_fails_all_and_each_is_named(found: list[bool | None]) -> None:
    checks = [Check(f"check {at}", is_right=right) for at, right in enumerate(found)]
    result, message = verdict(checks)
    assert result == (FAILED if False in found else GOOD)
    named = [int(number) for number in re.findall(r"check (\d+)", message)]
    assert named == [at for at, right in enumerate(found) if right is False]


@pytest.mark.parametrize(
    ("allotted", "seen", "words"),
    [
        ([A], [A.removeprefix("GPU-")], None),
        ([A, B], [B.removeprefix("GPU-"), A.removeprefix("GPU-").upper()], None),
        ([A], [B.removeprefix("GPU-")], f"torch sees {B}, and the job has {A}"),
        ([A], [], "torch sees 0 devices, and the job has 1"),
        ([A], [A.removeprefix("GPU-"), B.removeprefix("GPU-")], "torch sees 2 devices"),
        # Of these it is known how many there are, and no more.
        ([A], [None], None),
        (["MIG-00000000-0000-5000-8000-00000000000c"], [A.removeprefix("GPU-")], None),
    ],
)
def test_torch_has_to_see_the_devices_of_the_job(
    allotted: list[str], seen: list[str | None], words: str | None
) -> None:
    said = not_as_allotted(allotted, seen)
    assert said is None if words is None else words in (said or "")


def test_what_is_published_is_in_order() -> None:
    for name, figures in PUBLISHED.items():
        assert figures.fp32 <= (figures.tf32 or figures.fp32) <= (figures.bf16 or 1e9), name
        assert figures.link in (16, 32, 64), name
        assert 100 < figures.memory < 10_000, name


def test_the_table_ends_with_the_verdict() -> None:
    checks = [
        judged(Check("matmul bf16", True, 700.0, "TFLOP/s"), "bf16", "NVIDIA H200"),
        judged(Check("memory copy", True, 900.0, "GB/s"), "memory", "NVIDIA H200"),
    ]
    result, message = verdict(checks)
    text = table({
        "devices": [{"uuid": A, "name": "NVIDIA H200"}],
        "torch": "2.13.0",
        "verdict": result,
        "message": message,
        "checks": [{**vars(check), "word": word(check)} for check in checks],
    })  # fmt: skip
    assert (
        text
        == f"""\
{A}  NVIDIA H200  torch 2.13.0
check        measured     at least       published
matmul bf16  700 TFLOP/s  296.7 TFLOP/s  989 TFLOP/s  right
memory copy  900 GB/s     2880 GB/s      4800 GB/s    TOO SLOW
failed: memory copy: 900 GB/s, at least 2880 expected
"""
    )
