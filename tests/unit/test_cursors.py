"""Cursors: what a page gives is where the next one begins, and nothing else is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd.errors import WrongCursor
from aitbcd.store import cursors
from aitbcd.store.cursors import Key

KINDS = (int, str, type(None))
NUMBERS = st.integers(0, cursors.MAX_NUMBER)
KEYS = st.tuples(st.none() | NUMBERS | st.text(), NUMBERS)
ORDERS = st.sampled_from(["cd", "ca", "na", "q", "x"])


@given(ORDERS, KEYS)
def test_what_is_written_is_read_again(order: str, key: Key) -> None:
    word = cursors.write(order, key)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", word)
    assert cursors.read(order, word, *KINDS) == key


@given(ORDERS, ORDERS, KEYS, st.sets(st.sampled_from(KINDS)))
def test_it_is_of_its_own_order_and_kind_alone(
    order: str, other: str, key: Key, kinds: set[type]
) -> None:
    word = cursors.write(order, key)
    if order == other and type(key[0]) in kinds:
        assert cursors.read(other, word, *kinds) == key
    else:
        with pytest.raises(WrongCursor):
            cursors.read(other, word, *kinds)


@given(
    st.text() | st.from_regex(r"cd\.(n|s[\w-]*|\d*)\.\d*", fullmatch=True) | st.from_regex(r"cd.*")
)
def test_any_other_word_is_refused_or_read_for_what_it_says(word: str) -> None:
    try:
        key = cursors.read("cd", word, *KINDS)
    except WrongCursor:
        return
    assert cursors.read("cd", cursors.write("cd", key), *KINDS) == key
