"""Who starts next, and on which GPUs: by turns, never more than there is."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aitbcd.allotment import Held, Stock, Wish
from aitbcd.devices import Gpu, GpuState
from aitbcd.model import Lane
from aitbcd.planner import Cap, Claim, Left, Line, Turn, Use, Waiting, first_overdue, lacking, plan

WHOLE = Claim(8, 64 << 30)
GIB = 1 << 30
ANN, BEN = 1, 2


def gpu(index: int, memory: int = 80 * GIB) -> Gpu:
    return Gpu(index, f"GPU-{index}", "NVIDIA H100", None, memory, 0, GpuState.FREE)


def stock(number: int) -> Stock:
    return Stock.of([gpu(index) for index in range(number)])


def line(uid: int, *jobs: Waiting, priority: int = 0) -> Line:
    return Line(Lane(priority, uid, bool(jobs[0].wish.count)), jobs)


def one(number: int, gpus: int = 0, cpus: int = 1) -> Waiting:
    return Waiting(number, Claim(cpus), Wish(gpus))


def share(number: int, size: int) -> Waiting:
    return Waiting(number, Claim(1), Wish(1, share=size * GIB))


claims = st.builds(Claim, st.integers(1, 8), st.integers(0, 64))
queues = st.lists(claims, max_size=20).map(
    lambda found: [Waiting(number, claim) for number, claim in enumerate(found, 1)]
)


@given(queues, claims)
def test_what_starts_fits_together(queue: list[Waiting], free: Claim) -> None:
    chosen = plan([Line(Lane(0, ANN, False), queue)], free)
    taken = Claim(0)
    for placed in chosen:
        taken = taken.plus(queue[placed.number - 1].claim)
    assert taken.fits(free)


@given(queues, claims)
def test_nobody_is_overtaken_by_his_own_jobs(queue: list[Waiting], free: Claim) -> None:
    chosen = plan([Line(Lane(0, ANN, False), queue)], free)
    assert [placed.number for placed in chosen] == list(range(1, len(chosen) + 1))


@given(queues, claims)
def test_nobody_waits_who_could_start(queue: list[Waiting], free: Claim) -> None:
    chosen = plan([Line(Lane(0, ANN, False), queue)], free)
    left = free
    for placed in chosen:
        left = left.minus(queue[placed.number - 1].claim)
    if len(chosen) < len(queue):
        assert not queue[len(chosen)].claim.fits(left)


wishes = st.builds(
    Wish, st.integers(1, 3), share=st.none() | st.integers(1, 90).map(lambda size: size * GIB)
).map(lambda wish: wish._replace(count=1) if wish.share else wish)
crowds = st.lists(
    st.tuples(
        st.sampled_from([ANN, BEN, 3]), st.sampled_from([-1, 0, 1]), wishes | st.just(Wish())
    ),
    max_size=30,
)


def lines_of(crowd: list[tuple[int, int, Wish]]) -> list[Line]:
    found: dict[Lane, list[Waiting]] = {}
    for number, (uid, priority, wish) in enumerate(crowd, 1):
        lane = Lane(priority, uid, bool(wish.count))
        found.setdefault(lane, []).append(Waiting(number, Claim(1), wish))
    return [Line(lane, jobs) for lane, jobs in found.items()]


@given(crowds)
def test_no_gpu_is_given_twice_and_no_share_exceeds_it(crowd: list[tuple[int, int, Wish]]) -> None:
    whole: list[str] = []
    shared: dict[str, int] = {}
    for placed in plan(lines_of(crowd), Claim(100), stock(4)):
        wish = crowd[placed.number - 1][2]
        if wish.share is None:
            assert len(placed.gpu_uuids) == wish.count
            whole += placed.gpu_uuids
        else:
            (uuid,) = placed.gpu_uuids
            shared[uuid] = shared.get(uuid, 0) + wish.share
    assert len(set(whole)) == len(whole)
    assert not set(whole) & set(shared)
    assert all(size <= 80 * GIB for size in shared.values())


def test_only_as_much_of_the_queue_is_read_as_starts() -> None:
    numbers = count(1)
    jobs = (one(next(numbers)) for _ in range(100))
    assert len(plan([Line(Lane(0, ANN, False), jobs)], Claim(2))) == 2
    assert next(numbers) == 4


def test_the_higher_priority_comes_first_whoever_has_more() -> None:
    lines = [line(BEN, one(1)), line(ANN, one(2), priority=1)]
    chosen = plan(lines, Claim(1), uses={ANN: Use(3, 3, 3)})
    assert [placed.number for placed in chosen] == [2]


def test_who_has_fewest_gpus_comes_next_so_that_a_sweep_blocks_nobody() -> None:
    sweep = line(ANN, *[one(number, 1) for number in range(1, 65)])
    chosen = plan([sweep, line(BEN, one(99, 1))], Claim(16), stock(4))
    assert [placed.number for placed in chosen] == [1, 99, 2, 3]


def test_then_who_has_fewest_cores() -> None:
    lines = [line(ANN, one(1), one(2)), line(BEN, one(3), one(4))]
    chosen = plan(lines, Claim(3), uses={ANN: Use(1, 0, 1)})
    assert [placed.number for placed in chosen] == [3, 1, 4]


def test_jobs_without_gpus_run_while_all_gpus_are_taken() -> None:
    lines = [line(ANN, one(1, 1)), line(ANN, one(2))]
    taken = stock(1).with_held(Held(["GPU-0"]))
    assert [placed.number for placed in plan(lines, Claim(4), taken)] == [2]


def test_a_job_for_many_gpus_is_not_starved_by_small_ones() -> None:
    held = stock(2).with_held(Held(["GPU-0"]))
    lines = [line(ANN, one(1, 2)), line(BEN, one(2, 1))]
    assert plan(lines, Claim(8), held) == []
    [placed] = plan(lines, Claim(8), stock(2))
    assert (placed.number, sorted(placed.gpu_uuids)) == (1, ["GPU-0", "GPU-1"])


def test_a_large_share_is_not_starved_by_small_ones() -> None:
    held = stock(1).with_held(Held(["GPU-0"], 40 * GIB))
    lines = [line(ANN, share(1, 60)), line(BEN, share(2, 10))]
    assert plan(lines, Claim(8), held) == []
    assert [placed.number for placed in plan(lines[1:], Claim(8), held)] == [2]


def test_a_whole_gpu_is_not_starved_by_shares() -> None:
    held = stock(1).with_held(Held(["GPU-0"], 20 * GIB))
    shares = [share(number, 20) for number in range(2, 8)]
    assert plan([line(ANN, one(1, 1), *shares)], Claim(8), held) == []
    assert plan([line(ANN, one(1, 1)), line(BEN, *shares)], Claim(8), held) == []
    two = stock(2).with_held(Held(["GPU-0"], 20 * GIB))
    assert plan([line(ANN, one(1, 2), *shares)], Claim(8), two) == []


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3)), min_size=12, max_size=12),
)
def test_whole_gpus_come_whatever_shares_keep_coming(
    gpus: int, count: int, stream: list[tuple[int, int]]
) -> None:
    """A share comes at each moment and stays for at most three of them."""
    count = min(count, gpus)
    held: list[tuple[int, Held]] = []
    for moment in range(20):
        held = [(until, each) for until, each in held if until > moment]
        size, stay = stream[moment % len(stream)]
        waiting = [share(100 + moment, size)]
        if moment >= 10:
            waiting.insert(0, one(1, count))
        now = Stock.of([gpu(at) for at in range(gpus)], [each for _, each in held])
        placed = plan([line(ANN, *waiting)], Claim(99), now)
        if placed and placed[0].number == 1:
            return
        for start in placed:
            held.append((moment + stay, Held(start.gpu_uuids, size * GIB)))
    raise AssertionError(f"{count} of {gpus} GPUs never came: {held}")


def test_what_is_kept_for_one_kind_does_not_keep_another_kind_waiting() -> None:
    gpus = Stock.of([gpu(0), gpu(1), replace(gpu(2), name="RTX 4090")])
    held = gpus.with_held(Held(["GPU-1"]))
    wanted = [
        Waiting(1, Claim(1), Wish(2, "NVIDIA H100")),
        Waiting(2, Claim(1), Wish(1, "RTX 4090")),
    ]
    [placed] = plan([line(ANN, *wanted)], Claim(8), held)
    assert (placed.number, placed.gpu_uuids) == (2, ("GPU-2",))


def test_however_many_wait_for_one_gpu_the_next_may_have_another() -> None:
    lost = Stock.of([replace(gpu(0), state=GpuState.LOST), gpu(1)])
    named = [Waiting(number, Claim(1), Wish(1, named=("GPU-0",))) for number in range(1, 61)]
    [placed] = plan([line(ANN, *named, one(99, 1))], Claim(8), lost)
    assert (placed.number, placed.gpu_uuids) == (99, ("GPU-1",))


def test_however_much_is_refused_the_next_may_have_what_is_there() -> None:
    lost = Stock.of([replace(gpu(0), state=GpuState.LOST), gpu(1)])
    wishes = [Wish(1, min_memory=size, named=("GPU-0",)) for size in range(200)]
    refused = [Waiting(number, Claim(1), wish) for number, wish in enumerate(wishes, 1)]
    [placed] = plan([line(ANN, *refused, one(999, 1))], Claim(8), lost)
    assert (placed.number, placed.gpu_uuids) == (999, ("GPU-1",))


def test_what_is_kept_and_for_whom_is_told() -> None:
    held = stock(3).with_held(Held(["GPU-0"]))
    wide = line(ANN, one(1, 3))
    left = Left()
    assert plan([wide, line(BEN, one(2, 1))], Claim(8), held, left=left) == []
    assert left == Left(None, dict.fromkeys(["GPU-1", "GPU-2"], Turn(wide.lane, one(1, 3))))


def test_who_lacks_cores_is_told_to_those_behind() -> None:
    large = line(ANN, one(1, cpus=8))
    left = Left()
    assert plan([large, line(BEN, one(2))], Claim(7), left=left) == []
    assert left == Left(Turn(large.lane, one(1, cpus=8)))


def test_it_stays_the_turn_of_whom_gpus_are_collected_for() -> None:
    """Each GPU that becomes free would go to Ann, who has none then, and the others stay idle."""
    small, wide = line(ANN, one(1, 1), one(2, 1)), line(BEN, one(3, 2))
    left = Left()
    [placed] = plan([small, wide], Claim(8), stock(2), left=left)
    assert placed.number == 1
    assert left.collecting == [Turn(wide.lane, one(3, 2))]
    rest = line(ANN, one(2, 1))
    assert plan([rest, wide], Claim(8), stock(2))[0].number == 2
    [placed] = plan([rest, wide], Claim(8), stock(2), ahead=left.collecting)
    assert placed.number == 3


def test_nothing_is_kept_for_a_job_while_enough_cannot_come() -> None:
    for state in (GpuState.LOST, GpuState.FOREIGN, GpuState.DRAINED, GpuState.QUARANTINED):
        now = Stock.of([gpu(0), replace(gpu(1), state=state)])
        lines = [line(ANN, one(1, 2)), line(BEN, one(2, 1))]
        [placed] = plan(lines, Claim(8), now)
        assert placed.number == 2


# Who has waited for long

HOUR = 3600


def since(number: int, gpus: int, at: int) -> Waiting:
    return one(number, gpus)._replace(since=at)


def test_who_has_waited_for_long_comes_before_who_has_less() -> None:
    has_one = {ANN: Use(1, 1, 1)}
    free = stock(2).with_held(Held(["GPU-0"]))
    wide, small = line(ANN, since(1, 2, 0)), line(BEN, since(2, 1, HOUR))
    assert [placed.number for placed in plan([wide, small], Claim(8), free, has_one)] == [2]
    turn = first_overdue(wide, HOUR, {})
    assert turn == Turn(wide.lane, since(1, 2, 0))
    # GPUs are collected for it.
    assert plan([wide, small], Claim(8), free, has_one, ahead=[turn]) == []
    [placed] = plan([wide, small], Claim(8), stock(2), has_one, ahead=[turn])
    assert placed.number == 1


def test_a_higher_priority_comes_before_who_has_waited_for_long() -> None:
    low, high = line(ANN, since(1, 1, 0), priority=-1), line(BEN, since(2, 1, HOUR), priority=0)
    turn = first_overdue(low, HOUR, {})
    assert turn
    chosen = plan([low, high], Claim(8), stock(2), ahead=[turn])
    assert [placed.number for placed in chosen] == [2, 1]


def test_who_has_waited_for_long_gets_no_more_than_he_may_have() -> None:
    wide = line(ANN, since(1, 2, 0))
    turn = first_overdue(wide, HOUR, {})
    assert turn
    assert plan([wide], Claim(8), stock(2), caps={ANN: Cap(gpus=1)}, ahead=[turn]) == []


def test_whose_jobs_of_a_kind_start_now_and_then_has_not_waited_for_long() -> None:
    sweep = line(ANN, since(1, 1, 0), since(2, 1, 1), since(3, 2, 2), since(4, 4, HOUR + 1))
    turn = first_overdue(sweep, HOUR, {(ANN, Wish(1)): HOUR + 1, (BEN, Wish(2)): HOUR + 1})
    assert turn == Turn(sweep.lane, since(3, 2, 2))
    started = {(ANN, Wish(1)): HOUR + 1, (ANN, Wish(2)): HOUR + 1}
    assert first_overdue(sweep, HOUR, started) is None


@given(
    st.integers(2, 4),
    st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), min_size=8, max_size=8),
)
def test_a_job_for_many_gpus_starts_whoever_comes_that_has_none(
    gpus: int, stream: list[tuple[int, int]]
) -> None:
    """At each moment somebody new comes; Ann has one GPU for good and waits for all others."""
    wide = line(ANN, since(1, gpus, 0))
    held: list[tuple[int, Held]] = []
    waiting: list[tuple[int, Line]] = []
    for moment in range(40):
        held = [(until, each) for until, each in held if until > moment]
        count, stay = stream[moment % len(stream)]
        waiting.append((stay, line(100 + moment, since(100 + moment, min(count, gpus), moment))))
        turn = first_overdue(wide, moment - 5, {})
        now = Stock.of([gpu(at) for at in range(gpus)], [each for _, each in held])
        lines = [wide, *(each for _, each in waiting)]
        placed = plan(lines, Claim(99), now, {ANN: Use(1, 1, 1)}, ahead=[turn] if turn else [])
        if any(start.number == 1 for start in placed):
            return
        for start in placed:
            [stay] = [stay for stay, each in waiting if each.lane == start.lane]
            held.append((moment + stay, Held(start.gpu_uuids)))
            waiting = [each for each in waiting if each[1].lane != start.lane]
    raise AssertionError(f"{gpus} GPUs never came: {held}")


def test_nobody_gets_more_than_he_may_have() -> None:
    sweep = line(ANN, *[one(number, 1) for number in range(1, 9)])
    chosen = plan([sweep], Claim(16), stock(8), caps={ANN: Cap(gpus=2)})
    assert [placed.number for placed in chosen] == [1, 2]
    plain = line(ANN, *[one(number) for number in range(1, 9)])
    chosen = plan([plain], Claim(16), uses={ANN: Use(1, 0, 1)}, caps={ANN: Cap(running=3)})
    assert [placed.number for placed in chosen] == [1, 2]


@given(claims, claims)
def test_a_claim_given_back_leaves_what_was_there(one: Claim, other: Claim) -> None:
    assert one.plus(other).minus(other) == one


def test_what_is_lacking_is_said_with_numbers() -> None:
    said = lacking(Claim(4), Claim(1, 8 << 30), WHOLE)
    assert said == "waits for 4 CPU cores (1 of 8 free)"
    said = lacking(Claim(1, 16 << 30), Claim(0, 8 << 30), WHOLE)
    assert said == (
        "waits for 1 CPU core (0 of 8 free) and 16 GiB of memory (8 GiB of 64 GiB free)"
    )
    assert lacking(Claim(1), Claim(1), WHOLE) == ""


def test_what_asks_for_more_than_there_is_is_overtaken_by_all() -> None:
    lines = [line(ANN, one(1, cpus=8), one(2)), line(BEN, one(3, cpus=8)), line(BEN, one(4, 1))]
    left = Left()
    chosen = plan(lines, Claim(2), stock(1), left=left, whole=Claim(4))
    assert sorted(placed.number for placed in chosen) == [2, 4]
    assert left.first is None
    assert [placed.number for placed in plan(lines, Claim(8), whole=Claim(8))] == [1]
