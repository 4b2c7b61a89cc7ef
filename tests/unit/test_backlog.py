"""The window over the queue's front never misorders, doubles or forgets a job."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from aitbcd.backlog import WINDOW, Backlog
from aitbcd.model import Job, JobState, Owner, Priority


def job(number: int, priority: int = 0) -> Job:
    return Job(
        number, f"job_{number}", Owner(1, "a"), JobState.PENDING, None, 1, None, 0, None,
        Priority(priority), 0, 0, number,
    )  # fmt: skip


class Queue:
    """A backlog over a store that is a list."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.stored: list[Job] = []
        self.taken: set[int] = set()

    def submit(self, priority: int) -> None:
        new = job(len(self.stored) + 1, priority)
        self.stored.append(new)
        self.backlog.offer(new, None)

    def submit_many(self, count: int) -> None:
        for _ in range(count):
            self.stored.append(job(len(self.stored) + 1))
        self.backlog.arrived()

    def waiting(self) -> list[Job]:
        left = [each for each in self.stored if each.number not in self.taken]
        return sorted(left, key=lambda each: (-each.priority, each.number))

    def refill(self) -> None:
        front = self.waiting()[:WINDOW]
        self.backlog.refill(
            front,
            {},
            but=self.taken,
            is_all=len(front) < WINDOW,
            arrivals=self.backlog.arrivals,
        )

    def take_first(self) -> int | None:
        if self.backlog.is_low:
            self.refill()
        first = next(self.backlog.waiting(), None)
        if first is None:
            return None
        self.backlog.take(first.number)
        self.taken.add(first.number)
        return first.number


steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from([-1, 0, 1])),
        st.tuples(st.just("many"), st.integers(1, 3 * WINDOW)),
        st.tuples(st.just("take"), st.integers(1, 2 * WINDOW)),
    ),
    max_size=30,
)


@given(steps)
def test_jobs_leave_in_the_order_of_the_whole_queue(found: list[tuple[str, int]]) -> None:
    queue = Queue()
    for step, value in found:
        if step == "submit":
            queue.submit(value)
        elif step == "many":
            queue.submit_many(value)
        else:
            for _ in range(value):
                expected = next((each.number for each in queue.waiting()), None)
                assert queue.take_first() == expected
    while (first := next((each.number for each in queue.waiting()), None)) is not None:
        assert queue.take_first() == first


@given(steps)
def test_the_window_stays_small(found: list[tuple[str, int]]) -> None:
    queue = Queue()
    queue.refill()
    for step, value in found:
        if step == "submit":
            queue.submit(value)
        elif step == "many":
            queue.submit_many(value)
        assert len(queue.backlog) <= 2 * WINDOW


def test_a_job_that_comes_during_a_refill_is_not_forgotten() -> None:
    backlog = Backlog()
    before = backlog.arrivals
    backlog.offer(job(2), None)
    backlog.refill([job(1)], {}, but=set(), is_all=True, arrivals=before)
    assert backlog.is_low
    backlog.refill([job(1), job(2)], {}, but=set(), is_all=True, arrivals=backlog.arrivals)
    assert [each.number for each in backlog.waiting()] == [1, 2]
    assert not backlog.is_low


def test_a_job_offered_twice_is_there_once() -> None:
    backlog = Backlog()
    backlog.refill([job(1)], {}, but=set(), is_all=True, arrivals=backlog.arrivals)
    backlog.offer(job(1), None)
    assert len(backlog) == 1


def test_a_user_who_has_to_wait_is_left_out_and_comes_back_in_his_place() -> None:
    backlog = Backlog()
    jobs = [replace(job(number), owner=Owner(number % 2, "x")) for number in range(1, 7)]
    backlog.refill(jobs, {}, but=set(), is_all=True, arrivals=backlog.arrivals)
    backlog.drop(0)
    assert [each.number for each in backlog.waiting()] == [1, 3, 5]
    backlog.arrived()
    assert backlog.is_low
    backlog.refill(jobs, {}, but=set(), is_all=True, arrivals=backlog.arrivals)
    assert [each.number for each in backlog.waiting()] == [1, 2, 3, 4, 5, 6]
