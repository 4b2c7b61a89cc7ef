"""Job ids: one number, one id, both ways; prefixes find what comparing every id finds."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd.model import ID_ALPHABET
from aitbcd.store.ids import JobIds, Named, letters_of

offsets = st.integers(0, 2**40 - 1)
numbers = st.integers(1, 2**40 - 1)
prefixes = st.text(st.sampled_from(ID_ALPHABET), min_size=1, max_size=3)


@given(offsets, numbers)
def test_an_id_leads_back_to_its_number(offset: int, number: int) -> None:
    ids = JobIds(offset)
    job_id = ids.of(number)
    assert job_id.startswith("job_")
    assert len(job_id) == 12
    assert set(job_id[4:]) <= set(ID_ALPHABET)
    assert ids.number(job_id[4:]) == number


@given(offsets, st.sets(numbers, min_size=2, max_size=50))
def test_two_numbers_have_two_ids(offset: int, some: set[int]) -> None:
    ids = JobIds(offset)
    assert len({ids.of(number) for number in some}) == len(some)


@given(offsets, st.integers(1, 2**30))
def test_neighbours_differ_in_their_first_letter(offset: int, number: int) -> None:
    ids = JobIds(offset)
    assert len({ids.of(number + step)[4] for step in range(3)}) == 3


@given(offsets, st.integers(1, 2**30))
def test_three_letters_tell_a_thousand_jobs_in_a_row_apart(offset: int, first: int) -> None:
    ids = JobIds(offset)
    assert len({ids.of(number)[4:7] for number in range(first, first + 1000)}) == 1000


@given(offsets, prefixes, st.integers(0, 3000))
def test_a_prefix_finds_what_comparing_each_id_finds(offset: int, prefix: str, last: int) -> None:
    ids = JobIds(offset)
    found = list(ids.matching(prefix, last))
    assert found == [n for n in range(last, 0, -1) if ids.of(n)[4:].startswith(prefix)]


@given(offsets, st.integers(1, 10**6), st.integers(4, 8), st.integers(0, 10**6))
def test_a_job_is_found_by_its_own_letters_among_a_million(
    offset: int, number: int, letters: int, more: int
) -> None:
    ids = JobIds(offset)
    assert number in ids.matching(ids.of(number)[4 : 4 + letters], number + more)


@given(offsets, st.integers(0, 50))
def test_the_names_of_a_batch_are_those_of_each_job(offset: int, count: int) -> None:
    ids = JobIds(offset)
    named = Named(range(7, 7 + count), ids)
    every = [(number, ids.of(number)) for number in range(7, 7 + count)]
    assert list(named) == named[:] == every
    assert len(named) == count
    assert named[3:9] == every[3:9]
    with pytest.raises(IndexError):
        named[count]


@pytest.mark.parametrize(
    ("ref", "letters"),
    [
        ("job_7k3m9q2x", "7k3m9q2x"),
        ("7K3M9Q2X", "7k3m9q2x"),
        ("JOB_7k", "7k"),
        ("7", "7"),
        ("", None),
        ("job_", None),
        ("job_7k3m9q2xx", None),
        ("job_7k3m9q2i", None),
        ("7k 3", None),
        ("%", None),
        ("7k3m\n", None),
        ("\N{ARABIC-INDIC DIGIT SEVEN}", None),
    ],
)
def test_only_letters_of_ids_can_be_one(ref: str, letters: str | None) -> None:
    assert letters_of(ref) == letters


@pytest.mark.parametrize("letter", sorted(set(string.ascii_lowercase) - set(ID_ALPHABET)))
def test_letters_that_look_like_others_are_in_no_id(letter: str) -> None:
    assert letter in "ilou"
