"""Who starts next: strictly in order, never more than there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aitbcd.planner import Claim, Waiting, lacking, plan

claims = st.builds(Claim, st.integers(1, 8), st.integers(0, 64), st.integers(0, 4))
queues = st.lists(claims, max_size=20).map(
    lambda found: [Waiting(number, claim) for number, claim in enumerate(found, 1)]
)
WHOLE = Claim(8, 64 << 30, 2)


@given(queues, claims)
def test_what_starts_fits_together(queue: list[Waiting], free: Claim) -> None:
    chosen = plan(queue, free)
    taken = Claim(0)
    for number in chosen:
        taken = taken.plus(queue[number - 1].claim)
    assert taken.fits(free)


@given(queues, claims)
def test_nobody_is_overtaken(queue: list[Waiting], free: Claim) -> None:
    chosen = plan(queue, free)
    assert chosen == list(range(1, len(chosen) + 1))


@given(queues, claims)
def test_nobody_waits_who_could_start(queue: list[Waiting], free: Claim) -> None:
    chosen = plan(queue, free)
    left = free
    for number in chosen:
        left = left.minus(queue[number - 1].claim)
    if len(chosen) < len(queue):
        assert not queue[len(chosen)].claim.fits(left)


def test_only_as_much_of_the_queue_is_read_as_starts() -> None:
    read = []

    def queue() -> object:
        for number in range(1, 100):
            read.append(number)
            yield Waiting(number, Claim(1))

    assert plan(queue(), Claim(2)) == [1, 2]  # type: ignore[arg-type]
    assert read == [1, 2, 3]


@given(claims, claims)
def test_a_claim_given_back_leaves_what_was_there(one: Claim, other: Claim) -> None:
    assert one.plus(other).minus(other) == one


def test_what_is_lacking_is_said_with_numbers() -> None:
    said = lacking(Claim(4), Claim(1, 8 << 30), WHOLE)
    assert said == "waits for 4 CPU cores (1 of 8 free)"
    said = lacking(Claim(1, 16 << 30, 1), Claim(0, 8 << 30, 0), WHOLE)
    assert said == (
        "waits for 1 CPU core (0 of 8 free) and 16.0 GiB of memory (8.0 GiB of 64.0 GiB free)"
        " and 1 GPU (0 of 2 free)"
    )
    assert lacking(Claim(1), Claim(1), WHOLE) == ""
