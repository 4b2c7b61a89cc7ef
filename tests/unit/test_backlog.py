"""The windows over the queue's lanes never misorder, double or forget a job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypothesis import given
from hypothesis import strategies as st

from aitbcd.allotment import Wish
from aitbcd.backlog import WINDOW, WISHES, Backlog, lane_of
from aitbcd.model import Front, Job, JobState, Lane, Owner, Priority


def job(
    number: int, priority: int = 0, uid: int = 1, gpus: int = 0, min_vram: int | None = None
) -> Job:
    return Job(
        number, f"job_{number}", Owner(uid, "a"), JobState.PENDING, None, 1, None, gpus, None,
        Priority(priority), 0, 0, number, min_vram=min_vram,
    )  # fmt: skip


def lanes(jobs: Iterable[Job], begin: Mapping[Lane, str] | None = None) -> dict[Lane, Front]:
    """Return what the store does: of each lane some wishes from one on, of each the first jobs."""
    found: dict[Lane, dict[str, list[Job]]] = {}
    for each in sorted(jobs, key=lambda each: each.number):
        wish = f"{each.gpus} {each.min_vram or 0:09}"
        found.setdefault(lane_of(each), {}).setdefault(wish, []).append(each)
    return {lane: front(wishes, (begin or {}).get(lane, "")) for lane, wishes in found.items()}


def front(jobs: Mapping[str, list[Job]], begin: str) -> Front:
    wishes = sorted(wish for wish in jobs if wish > begin)
    if not wishes:
        return front(jobs, "")
    read = wishes[:WISHES]
    first = [each for wish in read for each in jobs[wish][:WINDOW]]
    first.sort(key=lambda each: each.number)
    return Front(first, read[-1] if len(wishes) > WISHES else None)


def refill(backlog: Backlog, jobs: Iterable[Job], *, arrivals: int | None = None) -> None:
    now, begin = backlog.begin_refill()
    backlog.refill(
        lanes(jobs, begin), {}, but=set(), limit=WINDOW,
        arrivals=now if arrivals is None else arrivals,
    )  # fmt: skip


def numbers(backlog: Backlog) -> list[int]:
    return sorted(waiting.number for line in backlog.lines() for waiting in line.jobs)


class Queue:
    """A backlog over a store that is a list."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.stored: list[Job] = []
        self.taken: set[int] = set()

    def submit(
        self, priority: int, uid: int = 1, gpus: int = 0, min_vram: int | None = None
    ) -> None:
        new = job(len(self.stored) + 1, priority, uid, gpus, min_vram)
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
        arrivals, begin = self.backlog.begin_refill()
        found = lanes((each for each in self.waiting() if lane_of(each) not in unread), begin)
        self.backlog.refill(
            found, {}, but=self.taken, limit=WINDOW, unread=unread, arrivals=arrivals
        )

    def take(self, found: Job) -> None:
        self.backlog.take(lane_of(found), found.number)
        self.taken.add(found.number)

    def take_first(self) -> int | None:
        if self.backlog.is_low:
            self.refill()
        heads = sorted(self.backlog.fronts(1), key=lambda each: (-each.priority, each.number))
        if not heads:
            return None
        self.take(heads[0])
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
    before, _ = backlog.begin_refill()
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


def test_it_is_known_whether_all_that_stand_before_a_job_were_counted() -> None:
    backlog = Backlog()
    first, *rest = [job(number) for number in range(1, WINDOW + 9)]
    refill(backlog, [first, *rest, job(WINDOW + 9, -1)])
    assert backlog.knows_all_before(first)
    assert not backlog.knows_all_before(rest[-1])
    # Whoever comes later is before it too, where he has a higher priority.
    assert not backlog.knows_all_before(job(1, -1))


def test_of_each_lane_the_first_is_overdue_whose_like_was_not_started_lately() -> None:
    backlog = Backlog()
    jobs = [job(1, gpus=1), job(2, gpus=1), job(3, gpus=2), job(4, gpus=3), job(5, uid=2)]
    refill(backlog, jobs)
    started = {(1, Wish(1)): 90, (1, Wish(2)): 9}

    def overdue(before: int) -> list[int]:
        return [turn.waiting.number for turn in backlog.overdue(before, started)]

    assert overdue(10) == [3, 5]
    backlog.take(lane_of(jobs[2]), 3)
    assert overdue(10) == [4, 5]
    # Who came later has not waited for long.
    assert overdue(3) == []


# What one wishes for


def test_however_many_wait_for_one_gpu_those_for_another_are_there() -> None:
    queue = Queue()
    for _ in range(5 * WINDOW):
        queue.submit(0, gpus=1, min_vram=1)
    queue.submit(0, gpus=1, min_vram=2)
    queue.refill()
    last = queue.stored[-1].number
    assert numbers(queue.backlog) == [*range(1, WINDOW + 1), last]
    # One that comes later is there at once, those behind that are not read are not.
    queue.submit(0, gpus=1, min_vram=3)
    queue.submit(0, gpus=1, min_vram=2)
    queue.submit(0, gpus=1, min_vram=1)
    assert numbers(queue.backlog)[WINDOW:] == [last, last + 1, last + 2]
    assert not queue.backlog.is_low


def test_the_jobs_of_a_wish_leave_in_their_order_and_none_is_forgotten() -> None:
    queue = Queue()
    for number in range(7 * WINDOW):
        queue.submit(0, gpus=1, min_vram=1 + number % 2)
    for wish in (1, 2):
        for expected in [each for each in queue.waiting() if each.min_vram == wish]:
            if queue.backlog.is_low:
                queue.refill()
            found = [each for each in queue.backlog.fronts(1) if each.min_vram == wish]
            assert found == [expected]
            queue.take(expected)
    assert queue.waiting() == []


def test_a_batch_of_something_else_is_read() -> None:
    queue = Queue()
    for _ in range(WINDOW):
        queue.submit(0, gpus=1, min_vram=1)
    queue.refill()
    queue.stored.append(job(999, gpus=1, min_vram=2))
    queue.backlog.arrived(1)
    assert queue.backlog.is_low
    queue.refill()
    assert numbers(queue.backlog)[-1] == 999


def test_what_comes_during_a_refill_and_wishes_for_something_else_is_not_forgotten() -> None:
    queue = Queue()
    for _ in range(WINDOW):
        queue.submit(0, gpus=1, min_vram=1)
    arrivals, begin = queue.backlog.begin_refill()
    found = lanes(queue.waiting(), begin)
    queue.submit(0, gpus=1, min_vram=2)
    queue.backlog.refill(found, {}, but=set(), limit=WINDOW, arrivals=arrivals)
    assert queue.backlog.is_low
    queue.refill()
    assert numbers(queue.backlog)[-1] == WINDOW + 1


def test_each_of_more_wishes_than_fit_has_its_turn() -> None:
    queue = Queue()
    for number in range(3 * WISHES + 1):
        queue.submit(0, gpus=1, min_vram=1 + number)
        if queue.backlog.is_low:
            queue.refill()
    seen: set[int] = set()
    for _ in range(4):
        assert queue.backlog.has_more_wishes
        assert len(queue.backlog) <= 2 * WISHES
        seen.update(numbers(queue.backlog))
        queue.backlog.turn()
        assert queue.backlog.is_low
        queue.refill()
    assert seen == {each.number for each in queue.stored}
    # Where fewer are left they are there together.
    for each in queue.waiting()[WISHES:]:
        queue.backlog.take(lane_of(each), each.number)
        queue.taken.add(each.number)
    for _ in range(2):
        queue.backlog.turn()
        queue.refill()
    assert numbers(queue.backlog) == [*range(1, WISHES + 1)]
    assert not queue.backlog.has_more_wishes


def test_jobs_of_many_wishes_that_all_start_follow_each_other_without_a_turn() -> None:
    queue = Queue()
    for number in range(5 * WISHES):
        queue.submit(0, gpus=1, min_vram=1 + number)
    for _ in range(5 * WISHES):
        assert queue.take_first() is not None
    assert queue.waiting() == []
