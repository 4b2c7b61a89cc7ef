"""What ``quick`` reads of a submit, click reads the same."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcctl import quick, submission
from aitbcctl.commands import submit

FLAGS = [flag for flag, _, kind, _, _ in submission.OPTIONS if kind == submission.FLAG]
VALUED = [flag for flag, _, kind, _, _ in submission.OPTIONS if kind != submission.FLAG]
values = st.one_of(
    st.sampled_from(["a", "7", "-1", "08", "1_0", "low", "high", "K=V", "", "--", "-c", "--name"]),
    st.text(max_size=5),
)
words = st.one_of(
    st.sampled_from([*FLAGS, "--help", "-h", "--unknown", "--wai", "x", "-cx", "--wait=1"]).map(
        lambda word: [word]
    ),
    st.tuples(st.sampled_from(VALUED), values).map(list),
    st.tuples(st.sampled_from(VALUED), values).map(lambda pair: [f"{pair[0]}={pair[1]}"]),
)
lines = st.tuples(st.lists(words, max_size=5), st.booleans(), st.lists(values, max_size=3)).map(
    lambda parts: [*(w for ws in parts[0] for w in ws), *(["--"] if parts[1] else []), *parts[2]]
)


def by_click(line: list[str]) -> dict[str, Any] | None:
    """Return what click makes of it; None where it refuses, or prints help."""
    try:
        context = submit.command.make_context("submit", list(line))
    except (click.ClickException, click.exceptions.Exit):
        return None
    return {name: value for name, value in context.params.items() if value not in (None, False, ())}


@given(lines)
def test_what_is_read_quickly_means_the_same_to_click(line: list[str]) -> None:
    asked = quick.read(line)
    if asked is not None:
        argv = asked["argv"]
        plain = {name: value for name, value in asked.items() if value not in (None, False, ())}
        assert plain == by_click(line), argv


@pytest.mark.parametrize(
    "line",
    [
        ["--", "python", "train.py", "--lr", "0.1"],
        ["--name", "x", "--cpus", "4", "--env", "A=1", "--env=B=2", "--wait", "--", "true", "--"],
        ["-c", "a | b", "--"],
        ["--artifact", "*.pt", "--clean-env", "--json", "--priority", "low", "--", "x"],
    ],
)
def test_an_ordinary_submit_is_read_quickly(line: list[str]) -> None:
    assert quick.read(line) is not None


@pytest.mark.parametrize(
    "line",
    [["-h", "--", "x"], ["x"], ["--cpus", "many", "--", "x"], ["--name"], ["--wiat", "--", "x"]],
)
def test_what_click_should_answer_is_left_to_it(line: list[str]) -> None:
    assert quick.read(line) is None


def test_each_option_is_an_argument_of_the_submission() -> None:
    parameters = {parameter.name for parameter in submit.command.params}
    assert parameters - {"argv"} == {name for _, name, _, _, _ in submission.OPTIONS}
