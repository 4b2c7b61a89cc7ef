"""The windows over the queue's lanes never misorder, double or forget a job."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from aitbcd.backlog import WINDOW, Backlog, lane_of
from aitbcd.model import Job, JobState, Lane, Owner, Priority


def job(number: int, priority: int = 0, uid: int = 1, gpus: int = 0) -> Job:
    return Job(
        number, f"job_{number}", Owner(uid, "a"), JobState.PENDING, None, 1, None, gpus, None,
        Priority(priority), 0, 0, number,
    )  # fmt: skip


def lanes(jobs: Iterable[Job], limit: int = WINDOW) -> dict[Lane, list[Job]]:
    found: dict[Lane, list[Job]] = {}
    for each in sorted(jobs, key=lambda each: each.number):
        lane = found.setdefault(lane_of(each), [])
        if len(lane) < limit:
            lane.append(each)
    return found


def refill(backlog: Backlog, jobs: Iterable[Job], *, arrivals: int | None = None) -> None:
    backlog.refill(
        lanes(jobs), {}, but=set(), limit=WINDOW,
        arrivals=backlog.arrivals if arrivals is None else arrivals,
    )  # fmt: skip


def numbers(backlog: Backlog) -> list[int]:
    return sorted(waiting.number for line in backlog.lines() for waiting in line.jobs)


class Queue:
    """A backlog over a store that is a list."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.stored: list[Job] = []
        self.taken: set[int] = set()

    def submit(self, priority: int, uid: int = 1) -> None:
        new = job(len(self.stored) + 1, priority, uid)
        self.stored.append(new)
        self.backlog.offer(new, None)

    def submit_many(self, count: int, uid: int = 1) -> None:
        for _ in range(count):
            self.stored.append(job(len(self.stored) + 1, uid=uid))
        self.backlog.arrived(uid)

    def give_back(self, number: int) -> None:
        self.taken.discard(number)
        self.backlog.returned(self.stored[number - 1])

    def waiting(self) -> list[Job]:
        left = [each for each in self.stored if each.number not in self.taken]
        return sorted(left, key=lambda each: (-each.priority, each.number))

    def refill(self) -> None:
        unread = self.backlog.full()
        found = lanes(each for each in self.waiting() if lane_of(each) not in unread)
        self.backlog.refill(
            found, {}, but=self.taken, limit=WINDOW, unread=unread, arrivals=self.backlog.arrivals
        )

    def take_first(self) -> int | None:
        if self.backlog.is_low:
            self.refill()
        heads = sorted(self.backlog.fronts(1), key=lambda each: (-each.priority, each.number))
        if not heads:
            return None
        self.backlog.take(lane_of(heads[0]), heads[0].number)
        self.taken.add(heads[0].number)
        return heads[0].number


users = st.integers(1, 3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from([-1, 0, 1]), users),
        st.tuples(st.just("many"), st.integers(1, 3 * WINDOW), users),
        st.tuples(st.just("take"), st.integers(1, 2 * WINDOW), users),
        st.tuples(st.just("return"), st.integers(1, 1000), users),
    ),
    max_size=30,
)


@given(steps)
def test_jobs_leave_in_the_order_of_the_whole_queue(found: list[tuple[str, int, int]]) -> None:
    queue = Queue()
    for step, value, uid in found:
        if step == "submit":
            queue.submit(value, uid)
        elif step == "many":
            queue.submit_many(value, uid)
        elif step == "return":
            if queue.taken:
                queue.give_back(sorted(queue.taken)[value % len(queue.taken)])
        else:
            for _ in range(value):
                expected = next((each.number for each in queue.waiting()), None)
                assert queue.take_first() == expected
    while (first := next((each.number for each in queue.waiting()), None)) is not None:
        assert queue.take_first() == first


@given(steps)
def test_the_windows_stay_small(found: list[tuple[str, int, int]]) -> None:
    queue = Queue()
    queue.refill()
    for step, value, uid in found:
        if step == "submit":
            queue.submit(value, uid)
        elif step == "many":
            queue.submit_many(value, uid)
        for lane in {lane_of(each) for each in queue.stored}:
            inside = [line for line in queue.backlog.lines() if line.lane == lane]
            assert all(len(list(line.jobs)) <= 2 * WINDOW for line in inside)


def test_a_job_that_comes_during_a_refill_is_not_forgotten() -> None:
    backlog = Backlog()
    before = backlog.arrivals
    backlog.offer(job(2), None)
    refill(backlog, [job(1)], arrivals=before)
    assert backlog.is_low
    refill(backlog, [job(1), job(2)])
    assert numbers(backlog) == [1, 2]
    assert not backlog.is_low


def test_a_job_offered_twice_is_there_once() -> None:
    backlog = Backlog()
    refill(backlog, [job(1)])
    backlog.offer(job(1), None)
    assert len(backlog) == 1


def test_a_new_users_job_is_there_at_once() -> None:
    backlog = Backlog()
    refill(backlog, [job(1)])
    backlog.offer(job(2, uid=2), None)
    assert numbers(backlog) == [1, 2]
    assert not backlog.is_low


def test_a_user_who_has_to_wait_is_left_out_and_comes_back_in_his_place() -> None:
    backlog = Backlog()
    jobs = [job(number, uid=number % 2) for number in range(1, 7)]
    refill(backlog, jobs)
    backlog.drop(0)
    assert numbers(backlog) == [1, 3, 5]
    backlog.arrived(0)
    assert backlog.is_low
    refill(backlog, jobs)
    assert numbers(backlog) == [1, 2, 3, 4, 5, 6]


def test_what_stands_before_a_job_is_counted_over_all_lanes() -> None:
    backlog = Backlog()
    last = job(9)
    refill(backlog, [job(3, 1), job(4, -1), job(5, uid=2, gpus=1), job(8), last])
    assert backlog.ahead(last) == 3
    assert backlog.place(lane_of(last), 9) == 1
    assert backlog.place(lane_of(last), 7) is None
