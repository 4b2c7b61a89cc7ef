"""When jobs wait for room, and what they are told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aitbcd.settings import Storage
from aitbcd.space import closed_to_jobs, over_quota, reserve_of, short_of_space

GIB = 1 << 30


def test_a_gigabyte_is_kept_free_and_less_of_a_small_disk() -> None:
    assert reserve_of(Storage(), 1000 * GIB) == GIB
    assert reserve_of(Storage(), 10 * GIB) == 10 * GIB // 50
    assert reserve_of(Storage(reserve=20 * GIB), 10 * GIB) == 20 * GIB
    assert reserve_of(Storage(reserve=0), 10 * GIB) == 0


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_jobs_start_exactly_when_the_reserve_is_free(free: int, reserve: int) -> None:
    assert (short_of_space(free, reserve, "/x") is None) == (free >= reserve)


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_jobs_are_taken_in_as_long_as_they_could_start_and_longer(free: int, reserve: int) -> None:
    closed = closed_to_jobs(free, reserve, "/x")
    assert (closed is not None) == (free < reserve // 4 and free < 256 << 20)


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_a_user_may_fill_his_quota(used: int, quota: int) -> None:
    assert (over_quota(used, quota) is None) == (used <= quota)
    assert over_quota(used, None) is None


def test_what_is_lacking_is_said_with_numbers_and_what_to_do() -> None:
    assert short_of_space(31 * GIB // 10, 20 * GIB, "/var/lib/aitbcd") == (
        "waits for disk space: 3.1 GiB free of the 20 GiB that are kept free in /var/lib/aitbcd"
    )
    assert over_quota(512 * GIB, 500 * GIB) == (
        "waits for room: 512 GiB of results are kept of the 500 GiB that a user may have;"
        " delete some: aitbcctl delete JOB"
    )
