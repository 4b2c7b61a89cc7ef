"""Who gets a connection when there are no more."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aitbcd.api.seats import Seats


def nothing() -> None:
    pass


def test_who_is_alone_may_have_all_and_no_more() -> None:
    seats = Seats(3)
    taken = [seats.take("ada", nothing) for _ in range(4)]
    assert [seat is not None for seat in taken] == [True, True, True, False]


def test_who_has_most_makes_room_with_his_newest() -> None:
    seats, left = Seats(4), list[str]()
    for name in ("first", "second", "third"):
        assert seats.take("ada", lambda name=name: left.append(name))  # type: ignore[misc]
    assert seats.take("bob", nothing)
    assert seats.take("cleo", nothing)
    assert left == ["third"]
    # Ada has two now, and bob one: nobody is to be worse off than who comes.
    assert seats.take("bob", nothing) is None
    assert seats.take("dan", nothing)
    assert left == ["third", "second"]
    assert seats.take("eve", nothing) is None


def test_a_seat_is_given_back_once() -> None:
    seats = Seats(1)
    seat = seats.take("ada", nothing)
    assert seat
    seat.free()
    seat.free()
    assert seats.take("bob", nothing)
    assert seats.take("cleo", nothing) is None


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=80))
def test_there_are_never_more_and_nobody_is_kept_out(
    most: int, moves: list[tuple[int, bool]]
) -> None:
    seats = Seats(most)
    held: list[tuple[int, object]] = []
    for who, is_leaving in moves:
        if is_leaving and held:
            _, seat = held.pop(who % len(held))
            seat.free()  # type: ignore[attr-defined]
            continue
        mine: list[tuple[int, object]] = []

        def leave(mine: list[tuple[int, object]] = mine) -> None:
            held.remove(mine[0])

        before = Counter(each for each, _ in held)
        seat = seats.take(who, leave)
        if seat is None:
            assert sum(before.values()) == most
            assert before[who] or max(before.values()) == 1
        else:
            mine.append((who, seat))
            held.append(mine[0])
        assert len(held) <= most
