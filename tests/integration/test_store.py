"""The store on a real file: what goes in comes out, and a refusal changes nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aitbcd.errors import (
    AitbcError,
    IllegalTransition,
    InvalidJob,
    NoSuchJob,
    Unavailable,
    WrongState,
)
from aitbcd.lifecycle import TRANSITIONS, Trigger
from aitbcd.model import (
    FINAL,
    WHOLE,
    Cause,
    Ending,
    Event,
    GpuUse,
    JobSpec,
    Priority,
    Reason,
    ResultsState,
)
from aitbcd.store import Move, Store, Wanted, digest_of_command
from tests.integration.stores import (
    ANN,
    BEN,
    BOOT,
    DIGEST,
    NOW,
    SECOND,
    TRUE,
    WAYS,
    S,
    T,
    assert_gapless,
    assign,
    complete,
    dump,
    ending,
    every_event,
    heads,
    in_pieces,
    job_in,
    on_store,
    opened,
    run,
    whole_way,
)

texts = st.binary(max_size=20).map(lambda text: text.replace(b"\0", b""))
entries = st.builds(lambda name, value: name + b"=" + value, texts.filter(bool), texts)
lists = st.lists(texts, max_size=4).map(tuple)
sizes = st.integers(0, 2**62)
specs = st.builds(
    JobSpec,
    argv=st.lists(texts, min_size=1, max_size=4).map(tuple),
    is_shell=st.booleans(),
    name=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    cwd=st.none() | texts,
    environment=st.none() | st.lists(entries, max_size=4).map(tuple),
    env=st.lists(entries, max_size=4).map(tuple),
    cpus=st.integers(0, 1000),
    memory=st.none() | sizes,
    gpus=st.integers(0, 16),
    gpu_type=st.none() | st.sampled_from(["h100", "RTX 4090"]),
    min_vram=st.none() | sizes,
    gpu=st.lists(st.sampled_from(["GPU-1", "MIG-2"]), max_size=2).map(tuple),
    vram=st.none() | sizes,
    timeout_s=st.none() | st.floats(0, 1e9),
    priority=st.sampled_from(Priority),
    artifacts=lists,
    retries=st.integers(0, 100),
    umask=st.none() | st.integers(0, 0o777),
    stdin=st.none() | texts,
)


# Submitting


@on_store
async def test_a_submitted_job_waits_with_number_id_and_first_event(store: Store) -> None:
    job, event = await store.submit(ANN, TRUE, at=NOW)
    assert (job.number, job.owner, job.status, job.attempt) == (1, ANN, S.PENDING, 0)
    assert (job.created_at, job.assigned_at, job.started_at, job.ending) == (NOW, None, None, None)
    assert event == Event(1, 1, job.job_id, ANN.uid, NOW, S.PENDING, 0)
    assert await store.job(1) == job
    assert await store.events() == [event]
    assert await store.attempts(1) == []


@on_store
async def test_numbers_ascend_over_single_jobs_and_batches(store: Store) -> None:
    first, _ = await store.submit(ANN, TRUE, at=NOW)
    batch = await store.submit_many(BEN, in_pieces([TRUE] * 205), at=NOW)
    last, event = await store.submit(ANN, TRUE, at=NOW)
    assert [first.number, *(number for number, _ in batch.ids), last.number] == [*range(1, 208)]
    assert batch.events == range(2, 207)
    assert event.seq == 207
    assert [await store.job(number) for number, _ in batch.ids[:2]] == [
        replace(first, number=number, job_id=job_id, owner=BEN) for number, job_id in batch.ids[:2]
    ]
    for event in (await assert_gapless(store))[1:206]:
        assert (event.status, event.uid, event.job_id) == (
            S.PENDING,
            BEN.uid,
            batch.ids[event.number - 2][1],
        )


def test_what_was_submitted_is_read_as_it_was(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        store = runner.run(Store.open(tmp_path / "queue.db", now=NOW))

        async def round_trip(wanted: list[JobSpec]) -> None:
            for spec in wanted[:2]:
                job, _ = await store.submit(ANN, spec, at=NOW)
                assert await store.spec(job.number) == spec
                assert await store.job(job.number) == job
            batch = await store.submit_many(ANN, in_pieces(wanted, 2), at=NOW)
            stored = [await store.spec(number) for number, _ in batch.ids]
            assert stored == wanted

        @settings(deadline=None, max_examples=50)
        @given(st.lists(specs, max_size=6))
        def every_spec(wanted: list[JobSpec]) -> None:
            runner.run(round_trip(wanted))

        try:
            every_spec()
        finally:
            runner.run(store.close())


@on_store
async def test_a_whole_row_of_statements_and_its_rest_are_stored(store: Store) -> None:
    """Batches go in fifty at a time: all sizes around that have to come out."""
    for size in (0, 1, 49, 50, 51, 100, 149):
        wanted = [JobSpec((b"/bin/echo", str(i).encode())) for i in range(size)]
        batch = await store.submit_many(ANN, in_pieces(wanted, 1000), at=NOW)
        assert len(batch.ids) == len(batch.events) == size
        assert [await store.spec(number) for number, _ in batch.ids] == wanted
    await assert_gapless(store)


@on_store
async def test_a_batch_that_fails_half_way_leaves_nothing(store: Store) -> None:
    kept, _ = await store.submit(ANN, TRUE, at=NOW)

    def pieces() -> Iterable[list[JobSpec]]:
        yield [replace(TRUE, environment=(b"SECRET=1",))] * 120
        raise InvalidJob("line 121 is no job", line=121)

    with pytest.raises(InvalidJob, match="line 121"):
        await store.submit_many(ANN, pieces, at=NOW)
    assert await store.job(2) is None
    assert await store.count_pending() == 1
    assert await heads(store, 10) == [kept]
    batch = await store.submit_many(ANN, in_pieces([TRUE]), at=NOW)
    assert batch.ids[0][0] == 2
    await assert_gapless(store)


@on_store
async def test_a_batch_with_a_row_that_the_schema_refuses_leaves_nothing(store: Store) -> None:
    wrong = replace(TRUE, cpus=None)
    with pytest.raises(AitbcError, match="cpus"):
        await store.submit_many(ANN, in_pieces([TRUE] * 130 + [wrong]), at=NOW)
    assert await heads(store, 10) == []
    assert await store.count_pending() == 0


@on_store
async def test_an_environment_of_a_failed_batch_is_not_given_to_the_next_job(store: Store) -> None:
    """Its id was free again: who submits next must not run with somebody else's secrets."""
    secret, mine = (b"TOKEN=of ann",), (b"TOKEN=of ben",)

    def pieces() -> Iterable[list[JobSpec]]:
        yield [replace(TRUE, environment=secret)]
        raise InvalidJob("no")

    with pytest.raises(InvalidJob):
        await store.submit_many(ANN, pieces, at=NOW)
    ben, _ = await store.submit(BEN, replace(TRUE, environment=mine), at=NOW)
    ann, _ = await store.submit(ANN, replace(TRUE, environment=secret), at=NOW)
    assert (await store.spec(ben.number)).environment == mine
    assert (await store.spec(ann.number)).environment == secret


def test_an_environment_is_stored_once(tmp_path: Path) -> None:
    large = tuple(b"NAME%d=%s" % (i, b"x" * 1000) for i in range(100))

    async def scenario() -> None:
        async with opened(tmp_path / "queue.db") as store:
            await store.submit(ANN, replace(TRUE, environment=large), at=NOW)
            again = [replace(TRUE, environment=(*large,)) for _ in range(100)]
            await store.submit_many(BEN, in_pieces(again), at=NOW)
            assert (await store.spec(101)).environment == large

    asyncio.run(scenario())
    assert (tmp_path / "queue.db").stat().st_size < 400_000


# Moving


@on_store
async def test_a_job_goes_its_whole_way_and_each_step_is_an_event(store: Store) -> None:
    job, _ = await store.submit(ANN, TRUE, at=NOW)
    steps = [assign(1, at=NOW + 1), run(1, at=NOW + 2), complete(1, at=NOW + 3)]
    events = [event for step in steps for event in await store.move(step)]
    assert [(e.seq, e.at - NOW, e.status, e.attempt, e.reason) for e in events] == [
        (2, 1, S.ASSIGNED, 1, None),
        (3, 2, S.RUNNING, 1, None),
        (4, 3, S.COMPLETED, 1, None),
    ]
    end = steps[-1].ending
    assert await store.job(1) == replace(
        job, status=S.COMPLETED, attempt=1, assigned_at=NOW + 1, started_at=NOW + 2, ending=end
    )
    [attempt] = await store.attempts(1)
    assert (attempt.attempt, attempt.boot_id, attempt.handle) == (1, BOOT, "4711")
    assert (attempt.assigned_at, attempt.started_at, attempt.ending) == (NOW + 1, NOW + 2, end)
    assert await store.placement(1, 1) == (BOOT, (), WHOLE)
    assert await store.events(number=1) == await assert_gapless(store)


@on_store
async def test_what_can_wait_is_committed_soon_and_with_whatever_comes(store: Store) -> None:
    await store.submit(ANN, TRUE, at=NOW)
    await store.move(assign(1))
    started = store.move(run(1), can_wait=True)
    await store.submit(ANN, TRUE, at=NOW)
    assert started.done()
    # Nothing comes.
    end = Move(1, 1, S.RUNNING, Trigger.COMPLETE, NOW, ending=ending(exit_code=0), expires_at=NOW)
    [event] = await store.move(end, can_wait=True)
    assert event.status is S.COMPLETED


@on_store
async def test_every_part_of_an_ending_is_kept(store: Store) -> None:
    end = Ending(
        NOW + 9, Reason.SIGNAL, Cause.CUDA_OOM, "killed\nby 9", None, 9, 11, 12, 2**40,
        ResultsState.KEPT, DIGEST, 2**41, 17, 45,
    )  # fmt: skip
    await store.submit(ANN, TRUE, at=NOW)
    await store.move(assign(1), run(1))
    [event] = await store.move(Move(1, 1, S.RUNNING, T.FAIL, NOW + 10, ending=end))
    assert (event.reason, event.message) == (Reason.SIGNAL, "killed\nby 9")
    job = await store.job(1)
    assert job is not None
    assert job.ending == end
    assert [attempt.ending for attempt in await store.attempts(1)] == [end]


@on_store
async def test_what_an_attempt_made_of_its_gpus_is_kept_with_it_and_counted(store: Store) -> None:
    use = GpuUse(2.0, 3600, 7200.5, 41.5, 100, 1 << 36, None, 1234.567, 0.0)
    await store.submit(ANN, replace(TRUE, gpus=2), at=NOW)
    await store.move(replace(assign(1), gpu_share=500_000), run(1))
    end = ending(at=NOW + 4 * SECOND, gpu_use=use)
    await store.move(Move(1, 1, S.RUNNING, T.COMPLETE, end.finished_at, ending=end))
    [attempt] = await store.attempts(1)
    assert attempt.ending
    assert attempt.ending.gpu_use == use
    total = (await store.stats(Wanted(ANN.uid))).total
    assert (total.energy_mj, total.gpu_us) == (1_234_567, 4 * SECOND)


@on_store
async def test_how_much_memory_an_attempt_had_is_kept_with_it(store: Store) -> None:
    await store.submit(ANN, TRUE, at=NOW)
    await store.move(assign(1), run(1))
    end = ending(at=NOW + SECOND, max_rss=5, memory_peak=2**40)
    await store.move(Move(1, 1, S.RUNNING, T.COMPLETE, end.finished_at, ending=end))
    [attempt] = await store.attempts(1)
    assert attempt.ending == end


@on_store
async def test_what_an_attempt_was_given_is_kept_with_it(store: Store) -> None:
    await store.submit(ANN, replace(TRUE, gpus=2), at=NOW)
    uuids, models = ("GPU-1", "MIG-2"), ("NVIDIA H100 80GB HBM3", "NVIDIA H100 MIG 1g.10gb")
    await store.move(replace(assign(1), gpu_uuids=uuids, gpu_models=models, gpu_share=250_000))
    assert await store.placement(1, 1) == (BOOT, models, 250_000)
    [attempt] = await store.attempts(1)
    assert attempt.gpu_uuids == uuids
    [job] = await store.active()
    assert job.gpu_uuids == uuids


@on_store
async def test_a_repeated_job_inherits_nothing_of_its_last_attempt(store: Store) -> None:
    lost = ending(Reason.LOST, at=NOW + 5, message="its supervisor was killed", exit_code=7)
    first, _ = await store.submit(ANN, replace(TRUE, retries=1), at=NOW)
    await store.move(assign(1, at=NOW + 1), run(1, at=NOW + 2))
    [event] = await store.move(Move(1, 1, S.RUNNING, T.REQUEUE, NOW + 6, ending=lost))
    assert (event.status, event.reason, event.attempt) == (S.PENDING, Reason.LOST, 1)
    waiting = await store.job(1)
    assert waiting == replace(first, attempt=1)
    assert await heads(store, 5) == [waiting]
    assert await store.count_pending() == 1

    await store.move(assign(1, 2, at=NOW + 8))
    again = await store.job(1)
    assert again == replace(first, status=S.ASSIGNED, attempt=2, assigned_at=NOW + 8)
    before, current = await store.attempts(1)
    assert before.ending == replace(lost, results=ResultsState.NONE)
    assert (current.attempt, current.started_at, current.ending) == (2, None, None)


@on_store
async def test_a_repeated_job_that_is_canceled_in_the_queue_ends_without_its_attempt(
    store: Store,
) -> None:
    lost = ending(Reason.LOST, at=NOW + 5, exit_code=7)
    canceled = ending(Reason.CANCELED, at=NOW + 9, message="not wanted any more")
    await store.submit(ANN, TRUE, at=NOW)
    await store.move(
        assign(1),
        Move(1, 1, S.ASSIGNED, T.REQUEUE, NOW + 6, ending=lost),
        Move(1, 1, S.PENDING, T.CANCELED, NOW + 9, ending=canceled),
    )
    job = await store.job(1)
    assert job is not None
    assert (job.ending, job.started_at, job.attempt) == (canceled, None, 1)
    assert [attempt.ending for attempt in await store.attempts(1)] == [lost]


@on_store
async def test_each_state_refuses_what_is_expected_of_another_and_stays(store: Store) -> None:
    jobs = [await job_in(store, state) for state in WAYS]
    events = await assert_gapless(store)
    attempts = [await store.attempts(job.number) for job in jobs]
    pending = await store.count_pending()
    for job in jobs:
        for state in set(TRANSITIONS) - {job.status}:
            for trigger in TRANSITIONS[state]:
                number = job.attempt + (trigger is T.ASSIGN)
                move = Move(job.number, number, state, trigger, NOW, BOOT, "1", _end(trigger))
                with pytest.raises(WrongState) as refused:
                    await store.move(move)
                assert refused.value.fields["state"] == job.status.value
                assert f"job {job.number} is {job.status.value}" in refused.value.detail
    assert [await store.job(job.number) for job in jobs] == jobs
    assert [await store.attempts(job.number) for job in jobs] == attempts
    assert await every_event(store) == events
    assert await store.count_pending() == pending


def _end(trigger: Trigger) -> Ending:
    return ending(None if trigger is T.COMPLETE else Reason.EXIT)


@on_store
async def test_a_word_of_an_earlier_attempt_moves_nothing(store: Store) -> None:
    await store.submit(ANN, TRUE, at=NOW)
    requeue = Move(1, 1, S.ASSIGNED, T.REQUEUE, NOW, ending=ending(Reason.LOST))
    await store.move(assign(1), requeue, assign(1, 2))
    before = await store.job(1)
    for late in (run(1, 1), requeue, run(1, 3)):
        with pytest.raises(WrongState, match=r"is at attempt 2; this came from"):
            await store.move(late)
    for late in (assign(1, 2), assign(1, 4), assign(1, 1)):
        with pytest.raises(WrongState, match="is assigned"):
            await store.move(late)
    assert await store.job(1) == before
    await assert_gapless(store)


@on_store
async def test_two_that_assign_one_job_get_it_once(store: Store) -> None:
    await store.submit(ANN, TRUE, at=NOW)
    outcomes = await asyncio.gather(
        *(store.move(assign(1)) for _ in range(8)), return_exceptions=True
    )
    assert [isinstance(one, WrongState) for one in outcomes].count(False) == 1
    assert len(await store.attempts(1)) == 1


@on_store
async def test_moves_of_one_call_all_happen_or_none(store: Store) -> None:
    one, two = [await job_in(store, S.PENDING) for _ in range(2)]
    events = await every_event(store)
    with pytest.raises(WrongState):
        await store.move(assign(one.number), run(one.number), run(two.number))
    assert [await store.job(1), await store.job(2)] == [one, two]
    assert await store.attempts(1) == []
    assert await every_event(store) == events
    assert await store.count_pending() == 2
    await store.move(*whole_way(one.number), assign(two.number))
    assert await store.count_pending() == 0
    await assert_gapless(store)


@pytest.mark.parametrize(
    "move",
    [
        Move(1, 1, S.PENDING, T.RUN, NOW),
        Move(1, 1, S.COMPLETED, T.CANCEL, NOW),
        Move(1, 1, S.PENDING, T.ASSIGN, NOW),
        Move(1, 0, S.PENDING, T.CANCELED, NOW),
        Move(1, 0, S.PENDING, T.CANCELED, NOW, ending=ending()),
        Move(1, 0, S.PENDING, T.FAIL, NOW, ending=ending()),
        Move(1, 1, S.RUNNING, T.COMPLETE, NOW),
        Move(1, 1, S.RUNNING, T.COMPLETE, NOW, ending=ending(Reason.EXIT)),
    ],
    ids=lambda move: f"{move.expected.value}-{move.trigger.value}",
)
def test_a_move_that_cannot_be_is_refused_before_it_is_written(move: Move, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "queue.db") as store:
            job, event = await store.submit(ANN, TRUE, at=NOW)
            with pytest.raises(IllegalTransition):
                await store.move(move)
            assert await store.job(1) == job
            assert await store.events() == [event]

    asyncio.run(scenario())


@on_store
async def test_a_job_that_is_not_there_cannot_be_moved(store: Store) -> None:
    with pytest.raises(NoSuchJob):
        await store.move(assign(7))


@on_store
async def test_whatever_is_asked_the_rows_agree_with_the_events(store: Store) -> None:
    """Walk each job at random, legal or not; then compare what is kept three times over."""
    for seed in range(60):
        await store.submit(ANN, TRUE, at=NOW)
        await _wander(store, seed + 1, seed)
    latest = {event.number: event for event in await assert_gapless(store)}
    for number, event in latest.items():
        job = await store.job(number)
        assert job is not None
        assert (job.status, job.attempt) == (event.status, event.attempt)
        attempts = await store.attempts(number)
        assert [attempt.attempt for attempt in attempts] == [*range(1, job.attempt + 1)]
        assert (job.ending is not None) == (job.status in FINAL)
    active = [job.number for job in await store.active()]
    assert active == sorted(n for n, event in latest.items() if event.status.is_active)
    waiting = [n for n, event in latest.items() if event.status is S.PENDING]
    assert [job.number for job in await heads(store, 100)] == sorted(waiting)
    assert await store.count_pending() == len(waiting)


async def _wander(store: Store, number: int, seed: int) -> None:
    triggers = list(T)
    for step in range(12):
        seed = (seed * 1103515245 + 12345) % 2**31
        trigger = triggers[(seed >> 8) % len(triggers)]
        job = await store.job(number)
        assert job is not None
        attempt = job.attempt + (trigger is T.ASSIGN)
        end = _end(trigger) if trigger not in (T.RUN, T.CANCEL, T.ASSIGN) else None
        move = Move(number, attempt, job.status, trigger, NOW + step, BOOT, "1", end)
        try:
            [event] = await store.move(move)
        except IllegalTransition:
            assert trigger not in TRANSITIONS[job.status]
        else:
            assert event.status is TRANSITIONS[job.status][trigger]


# Group commits


async def _at_once(store: Store, *calls: Callable[[], Awaitable[object]]) -> list[object]:
    """Make calls while the writer is busy, so that one transaction takes them all."""
    is_free, is_busy = threading.Event(), threading.Event()

    def pieces() -> Iterable[list[JobSpec]]:
        is_busy.set()
        is_free.wait(30)
        yield [TRUE]

    busy = store.submit_many(BEN, pieces, at=NOW)
    await asyncio.to_thread(is_busy.wait, 30)
    futures = [call() for call in calls]
    is_free.set()
    await busy
    return await asyncio.gather(*futures, return_exceptions=True)


@on_store
async def test_one_refused_change_sinks_no_other_of_its_group(store: Store) -> None:
    for _ in range(6):
        await store.submit(ANN, TRUE, at=NOW)
    late_refusal = (assign(5), run(5), run(6))
    wrong_row = replace(TRUE, cpus=None)
    outcomes = await _at_once(
        store,
        lambda: store.move(assign(1)),
        lambda: store.move(run(2)),
        lambda: store.submit(ANN, replace(TRUE, name="before"), at=NOW),
        lambda: store.move(*late_refusal),
        lambda: store.submit(ANN, wrong_row, at=NOW),
        lambda: store.submit(ANN, replace(TRUE, environment=(b"A=1",)), at=NOW),
        lambda: store.submit(ANN, replace(TRUE, env=(1,)), at=NOW),
        lambda: store.move(assign(99)),
        lambda: store.move(*whole_way(3)),
        lambda: store.submit_many(ANN, in_pieces([TRUE, wrong_row]), at=NOW),
        lambda: store.submit_many(ANN, in_pieces([TRUE, TRUE]), at=NOW),
        lambda: store.submit(ANN, replace(TRUE, name="last"), at=NOW),
    )
    kinds = [type(one).__name__ if isinstance(one, Exception) else "done" for one in outcomes]
    assert kinds == [
        "done", "WrongState", "done", "WrongState", "AitbcError", "done",
        "TypeError", "NoSuchJob", "done", "AitbcError", "done", "done",
    ]  # fmt: skip
    states = [(await store.resolve(str(number), None)).status for number in range(1, 13)]
    assert states == [
        S.ASSIGNED, S.PENDING, S.COMPLETED, S.PENDING, S.PENDING, S.PENDING,
        S.PENDING, S.PENDING, S.PENDING, S.PENDING, S.PENDING, S.PENDING,
    ]  # fmt: skip
    assert await store.job(13) is None
    assert (await store.resolve("8", None)).name == "before"
    assert (await store.spec(9)).environment == (b"A=1",)
    assert (await store.resolve("12", None)).name == "last"
    assert await store.attempts(5) == []
    assert await store.count_pending() == 10
    await assert_gapless(store)


@on_store
async def test_what_waits_together_is_answered_with_one_wakeup(store: Store) -> None:
    loop = asyncio.get_running_loop()
    wakeups: list[object] = []
    wake = loop.call_soon_threadsafe

    def counted(callback: Callable[..., object], *args: object, **more: object) -> asyncio.Handle:
        if "_resolve" in repr(callback):
            wakeups.append(callback)
        return wake(callback, *args)

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
    submits = [lambda: store.submit(ANN, TRUE, at=NOW) for _ in range(200)]
    outcomes = await _at_once(store, *submits)
    assert not any(isinstance(one, Exception) for one in outcomes)
    # One for the batch that kept the writer busy, one for all others.
    assert len(wakeups) == 2


@on_store
async def test_what_a_caller_gave_up_waiting_for_is_stored_all_the_same(store: Store) -> None:
    def give_up() -> Awaitable[object]:
        future = store.submit(ANN, TRUE, at=NOW)
        future.cancel()
        return future

    outcomes = await _at_once(store, give_up, lambda: store.submit(BEN, TRUE, at=NOW))
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert [job.owner for job in await heads(store, 10)] == [BEN, ANN, BEN]


def test_what_was_asked_for_before_the_close_is_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await Store.open(tmp_path / "queue.db", now=NOW)
        asked = [store.submit(ANN, TRUE, at=NOW) for _ in range(50)]
        await store.close()
        assert all(future.done() for future in asked)
        with pytest.raises(Unavailable):
            await store.submit(ANN, TRUE, at=NOW)
        await store.close()
        async with opened(tmp_path / "queue.db") as again:
            assert await again.count_pending() == 50

    asyncio.run(scenario())


# What is kept beside


@on_store
async def test_typical_times_are_learned_by_name_or_else_by_command(store: Store) -> None:
    named, plain = replace(TRUE, name="train"), JobSpec((b"/bin/sleep", b"1"))
    command = digest_of_command(plain.argv)
    assert await store.typical_us(ANN.uid, "train", command) is None
    for number, (spec, seconds) in enumerate([(named, 10), (plain, 3), (named, 20)], 1):
        await store.submit(ANN, spec, at=NOW)
        await store.move(assign(number), run(number), complete(number, at=NOW + seconds * SECOND))
    assert await store.typical_us(ANN.uid, "train", command) == 15 * SECOND
    assert await store.typical_us(ANN.uid, None, command) == 3 * SECOND
    assert await store.typical_us(BEN.uid, "train", command) is None
    assert await store.typical_us(ANN.uid, None, digest_of_command(named.argv)) is None


@on_store
async def test_typical_times_follow_what_takes_longer_of_late(store: Store) -> None:
    named = replace(TRUE, name="train")
    for number in range(1, 41):
        await store.submit(ANN, named, at=NOW)
        seconds = 10 if number <= 20 else 50
        await store.move(assign(number), run(number), complete(number, at=NOW + seconds * SECOND))
    typical = await store.typical_us(ANN.uid, "train", b"")
    assert typical is not None
    assert 45 * SECOND < typical <= 50 * SECOND


@on_store
async def test_failed_and_very_short_runs_teach_nothing(store: Store) -> None:
    named = replace(TRUE, name="train")
    for _ in range(2):
        await store.submit(ANN, named, at=NOW)
    await store.move(assign(1), run(1), complete(1, at=NOW + 50_000))
    failed = ending(Reason.EXIT, at=NOW + 90 * SECOND, exit_code=1)
    await store.move(assign(2), run(2), Move(2, 1, S.RUNNING, T.FAIL, NOW, ending=failed))
    assert await store.typical_us(ANN.uid, "train", b"") is None


def test_a_clock_that_goes_backwards_breaks_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "queue.db") as store:
            await store.submit(ANN, replace(TRUE, name="train"), at=NOW)
            await store.move(assign(1, at=NOW - 5 * SECOND), run(1, at=NOW - 3 * SECOND))
            await store.move(complete(1, at=NOW - 9 * SECOND))
            job = await store.job(1)
            assert job is not None
            assert job.status is S.COMPLETED
            assert await store.typical_us(ANN.uid, "train", b"") is None

    asyncio.run(scenario())


def test_all_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"

    async def fill() -> list[object]:
        async with opened(path) as store:
            for state in WAYS:
                await job_in(store, state, BEN, replace(TRUE, name=state.value))
            return await _all_of(store)

    async def read() -> list[object]:
        async with opened(path) as store:
            return await _all_of(store)

    first = asyncio.run(fill())
    before = dump(path)
    assert asyncio.run(read()) == first
    assert dump(path) == before
    assert (path.stat().st_mode & 0o777) == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["queue.db"]


async def _all_of(store: Store) -> list[object]:
    numbers = range(1, len(WAYS) + 1)
    return [
        [await store.job(number) for number in numbers],
        [await store.spec(number) for number in numbers],
        [await store.attempts(number) for number in numbers],
        await every_event(store),
        await heads(store, 10),
        await store.active(),
        await store.count_pending(),
    ]


def test_no_file_of_a_live_store_can_be_read_by_others(tmp_path: Path) -> None:
    (tmp_path / "queue.db").touch(mode=0o666)
    (tmp_path / "queue.db").chmod(0o666)

    async def scenario() -> None:
        async with opened(tmp_path / "queue.db") as store:
            await store.submit(ANN, TRUE, at=NOW)
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
            assert modes == dict.fromkeys(("queue.db", "queue.db-wal", "queue.db-shm"), 0o600)

    asyncio.run(scenario())
