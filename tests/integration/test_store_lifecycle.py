"""What comes after a job's end: kept, expired, deleted; and who may see it: keys and shares."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path

import pytest
from msgspec.structs import replace

from aitbcd.errors import NoSuchJob, WrongState
from aitbcd.lifecycle import Trigger
from aitbcd.model import Job, JobSpec, Owner, Priority, Reason, ResultsState
from aitbcd.store import JobFilter, Move, Store
from tests.integration.stores import (
    ANN,
    BEN,
    DIGEST,
    NOW,
    SECOND,
    TRUE,
    WAYS,
    S,
    assign,
    dump,
    ending,
    job_in,
    on_store,
    opened,
    run,
)

DAY = 86_400 * SECOND
ORDER = ((3, BEN), (1, BEN), (2, ANN))


async def finished(
    store: Store, expires_at: int, *, size: int = 1000, spec: JobSpec = TRUE, owner: Owner = ANN
) -> Job:
    job, _ = await store.submit(owner, spec, at=NOW)
    end = ending(exit_code=0, results=ResultsState.KEPT, digest=DIGEST, result_bytes=size)
    final = Move(job.number, 1, S.RUNNING, Trigger.COMPLETE, NOW, ending=end, expires_at=expires_at)
    await store.move(assign(job.number), run(job.number), final)
    done = await store.job(job.number)
    assert done is not None
    return done


@on_store
async def test_a_job_says_its_plan_what_it_repeats_and_what_it_cost(store: Store) -> None:
    first, _ = await store.submit(ANN, TRUE, at=NOW, plan="pro")
    again, _ = await store.submit(ANN, TRUE, at=NOW, retry_of=first.number)
    assert (first.plan, first.retry_of) == ("pro", None)
    assert (again.plan, again.retry_of) == (None, first.job_id)
    assert await store.job(again.number) == again
    half = ending(Reason.LOST, charge_micro=5)
    rest = ending(Reason.EXIT, charge_micro=7)
    await store.move(
        assign(1), run(1), Move(1, 1, S.RUNNING, Trigger.REQUEUE, NOW, ending=half),
        assign(1, 2), run(1, 2),
        Move(1, 2, S.RUNNING, Trigger.FAIL, NOW, ending=rest, expires_at=NOW + DAY),
    )  # fmt: skip
    job = await store.job(1)
    assert job is not None
    assert (job.charge_micro, job.expires_at) == (12, NOW + DAY)
    attempts = await store.attempts(1)
    assert [a.ending.charge_micro for a in attempts if a.ending] == [5, 7]


@on_store
async def test_results_expire_in_their_order_and_leave_a_note(store: Store) -> None:
    jobs = [
        await finished(store, NOW + day * DAY, owner=BEN if day % 2 else ANN) for day in (3, 1, 2)
    ]
    assert await store.next_expiry() == (2, NOW + DAY)
    assert await store.usage(ANN.uid) == 1000
    assert await store.usage(BEN.uid) == 2000
    assert await store.expired(NOW, 10) == []
    due = await store.expired(NOW + 2 * DAY, 10)
    assert [job.number for job in due] == [2, 3]
    assert [job.number for job in await store.expired(NOW + 2 * DAY, 1)] == [2]
    page = await store.expiring(None, NOW + 9 * DAY, limit=2)
    assert [job.number for job in page.jobs] == [2, 3]
    rest = await store.expiring(None, NOW + 9 * DAY, limit=2, after=page.next)
    assert ([job.number for job in rest.jobs], rest.next) == ([1], None)
    assert [job.number for job in (await store.expiring(ANN.uid, NOW + 9 * DAY)).jobs] == [3]
    await store.keep(3, NOW + 5 * DAY)
    assert await store.expire([2, 3, 99], NOW + 2 * DAY) == [2]
    assert await store.expire([2], NOW + 2 * DAY) == []
    assert await store.removals() == [(2, jobs[1].job_id, BEN.uid)]
    assert await store.next_expiry() == (1, NOW + 3 * DAY)
    gone = await store.job(2)
    assert gone is not None
    assert gone.ending is not None
    assert gone.ending.results is ResultsState.EXPIRED
    assert await store.usage(BEN.uid) == 1000
    await store.removed(2)
    assert await store.removals() == []


def test_an_environment_leaves_with_the_results(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"

    async def scenario() -> None:
        async with opened(path) as store:
            bare, kept = (
                replace(TRUE),
                replace(TRUE, environment=(b"A=SECRET",), env=(b"B=SECRET",)),
            )
            for spec in (bare, kept):
                job = await finished(store, NOW, spec=spec)
                assert await store.spec_to_repeat(job.number) == spec
            await store.expire([1, 2], NOW)
            assert await store.spec_to_repeat(1) == bare
            assert (await store.spec(2)).argv == kept.argv
            with pytest.raises(WrongState, match="environment"):
                await store.spec_to_repeat(2)

    asyncio.run(scenario())
    assert not any("SECRET" in line or "534543524554" in line for line in dump(path))
    # Nor in pages that are not in use.
    assert b"SECRET" not in path.read_bytes()


@on_store
async def test_only_results_that_are_there_can_be_kept(store: Store) -> None:
    for state in (S.PENDING, S.RUNNING, S.CANCELED):
        job = await job_in(store, state)
        with pytest.raises(WrongState) as refused:
            await store.keep(job.number, NOW + DAY)
        assert refused.value.fields["state"] == state.value
    with pytest.raises(NoSuchJob):
        await store.keep(99, NOW)
    job = await finished(store, NOW)
    await store.expire([job.number], NOW)
    with pytest.raises(WrongState, match="expired"):
        await store.keep(job.number, NOW + DAY)


def test_a_deleted_job_leaves_its_figures_and_none_of_its_words(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    secret = JobSpec(
        (b"/bin/SECRET",), name="SECRET", cwd=b"/SECRET", environment=(b"A=SECRET",),
        env=(b"B=SECRET",), artifacts=(b"SECRET*",), stdin=b"/SECRET",
    )  # fmt: skip

    async def scenario() -> None:
        async with opened(path) as store:
            job = await finished(store, NOW + DAY, spec=secret)
            failed, _ = await store.submit(ANN, secret, at=NOW)
            end = ending(Reason.EXIT, message="SECRET", results=ResultsState.KEPT, digest=DIGEST)
            await store.move(
                assign(2), run(2), Move(2, 1, S.RUNNING, Trigger.FAIL, NOW, ending=end)
            )
            with pytest.raises(NoSuchJob):
                await store.delete(job.number, NOW, BEN.uid)
            assert await store.delete(job.number, NOW, ANN.uid) == 1000
            assert (await store.spec(failed.number)).environment == (b"A=SECRET",)
            assert await store.delete(failed.number, NOW, None) == 0
            assert [number for number, _, _ in await store.removals()] == [1, 2]
            assert await store.usage(ANN.uid) == 0
            assert await store.job(job.number) is None
            for ref in (job.job_id, str(job.number), job.job_id[:9], "@"):
                with pytest.raises(NoSuchJob):
                    await store.resolve(ref, None)
            assert (await store.list_jobs(JobFilter())).jobs == []
            assert await store.next_expiry() is None
            for again in (store.delete(job.number, NOW, None), store.keep(job.number, NOW)):
                with pytest.raises(NoSuchJob):
                    await again
            fresh, _ = await store.submit(ANN, replace(TRUE, environment=(b"A=1",)), at=NOW)
            assert fresh.number == 3
            assert (await store.spec(3)).environment == (b"A=1",)

    asyncio.run(scenario())
    assert not any("SECRET" in line or "534543524554" in line for line in dump(path))
    # Nor in pages that are not in use.
    assert b"SECRET" not in path.read_bytes()


@on_store
async def test_a_job_that_is_not_over_is_not_deleted(store: Store) -> None:
    for state in WAYS:
        job = await job_in(store, state)
        if state.is_final:
            await store.delete(job.number, NOW, ANN.uid)
            continue
        with pytest.raises(WrongState, match="cannot be deleted") as refused:
            await store.delete(job.number, NOW, ANN.uid)
        assert refused.value.fields["state"] == state.value
        assert refused.value.hint == f"cancel it first: aitbcctl cancel {job.job_id}"
        assert await store.job(job.number) == job


@on_store
async def test_the_queue_shows_what_runs_then_what_waits(store: Store) -> None:
    priorities = [Priority.LOW, Priority.HIGH, Priority.NORMAL, Priority.HIGH, Priority.NORMAL]
    for owner in (ANN, BEN):
        for priority in priorities:
            await store.submit(owner, replace(TRUE, priority=priority), at=NOW)
    await store.move(assign(7, at=NOW + 2))
    await store.move(assign(3, at=NOW + 3), assign(5, at=NOW + 2), run(5))
    wanted = [5, 7, 3, 2, 4, 9, 8, 10, 1, 6]
    for limit in (1, 2, 3, 4, 50):
        numbers: list[int] = []
        after: str | None = None
        while True:
            page = await store.queue(after, limit)
            numbers += [job.number for job in page.jobs]
            if page.next is None:
                break
            after = page.next
        assert numbers == wanted


@on_store
async def test_the_queue_for_gpus_leaves_out_all_that_need_none(store: Store) -> None:
    gpus = replace(TRUE, gpus=1)
    for spec in (TRUE, gpus, TRUE, gpus, replace(gpus, priority=Priority.HIGH), TRUE):
        await store.submit(ANN, spec, at=NOW)
    await store.move(assign(1), assign(2))
    first = await store.queue(limit=2, needs_gpus=True)
    assert [job.number for job in first.jobs] == [2, 5]
    rest = await store.queue(first.next, needs_gpus=True)
    assert ([job.number for job in rest.jobs], rest.next) == ([4], None)
    assert await store.count_pending_for_gpus() == 2


@on_store
async def test_a_key_is_known_by_its_digest_until_it_is_revoked(store: Store) -> None:
    digest, other = sha256(b"one").digest(), sha256(b"two").digest()
    key = await store.add_key(ANN, "laptop", digest, plan="pro", is_read_only=True, at=NOW)
    assert await store.keys() == {digest: key}
    assert (key.owner, key.name, key.plan, key.is_read_only) == (ANN, "laptop", "pro", True)
    with pytest.raises(WrongState, match="laptop already"):
        await store.add_key(ANN, "laptop", other, at=NOW)
    theirs = await store.add_key(BEN, "laptop", other, expires_at=NOW + DAY, at=NOW)
    await store.used_key(theirs.id, NOW + 1)
    assert (await store.keys())[other] == replace(theirs, last_used_at=NOW + 1)
    for wrong in ("", "key_", "laptop", theirs.id[4:], theirs.id + "0", "key_ilouilou"):
        assert await store.revoke_key(wrong, None, NOW) is None
    assert await store.revoke_key(theirs.id, ANN.uid, NOW) is None
    revoked = await store.revoke_key(key.id, ANN.uid, NOW + 2)
    assert revoked == replace(key, revoked_at=NOW + 2)
    assert await store.revoke_key(key.id, ANN.uid, NOW + 3) is None
    assert [*await store.keys()] == [other]
    await store.add_key(ANN, "laptop", sha256(b"three").digest(), at=NOW)


@on_store
async def test_a_share_ends_with_the_results(store: Store) -> None:
    job = await finished(store, NOW + DAY)
    digest = sha256(b"link").digest()
    link = await store.add_share(1, ANN, digest=digest, expires_at=NOW + 9 * DAY, at=NOW)
    assert (link.expires_at, link.job_id, link.user) == (NOW + DAY, job.job_id, None)
    given = await store.add_share(1, ANN, user="ben", expires_at=NOW + 5, at=NOW)
    assert await store.share_by_digest(digest) == link
    assert await store.share_by_digest(bytes(32)) is None
    assert await store.share_with("ben", 1, NOW)
    assert not await store.share_with("ben", 1, NOW + 5)
    assert not await store.share_with("carl", 1, NOW)
    assert await store.count_shares(1, NOW) == 2
    await store.used_share(link.id, NOW + 1)
    await store.used_share(link.id, NOW + 2)
    used = await store.share_by_digest(digest)
    assert used == replace(link, uses=2, last_used_at=NOW + 2)
    assert used is not None
    page = await store.shares(ANN.uid, limit=1)
    assert (page.shares, page.next) == ([given], given.id)
    assert (await store.shares(ANN.uid, after=page.next)).shares == [used]
    assert (await store.shares(None, number=1)).shares == [given, used]
    assert (await store.shares(BEN.uid)).shares == []
    await store.expire([1], NOW + DAY)
    assert await store.count_shares(1, NOW) == 0
    gone = await store.share_by_digest(digest)
    assert gone is not None
    assert gone.revoked_at == NOW + DAY
    for number, error in ((1, WrongState), (9, NoSuchJob)):
        with pytest.raises(error):
            await store.add_share(number, ANN, user="ben", expires_at=NOW, at=NOW)
    await finished(store, NOW + DAY)
    await store.add_share(2, ANN, user="ben", expires_at=NOW + 5, at=NOW)
    assert await store.revoke_shares(2, NOW) == 1
    assert not await store.share_with("ben", 2, NOW)


@on_store
async def test_a_word_of_the_store_about_itself_is_kept(store: Store) -> None:
    assert await store.meta("stopped") is None
    await store.set_meta("stopped", "the clock")
    await store.set_meta("stopped", "the clock jumped")
    assert await store.meta("stopped") == "the clock jumped"
    await store.set_meta("stopped", None)
    assert await store.meta("stopped") is None
    assert await store.newest_event_at() is None
    await store.submit(ANN, TRUE, at=NOW + 3)
    assert await store.newest_event_at() == NOW + 3


@on_store
async def test_a_deleted_job_has_no_events_for_anybody(store: Store) -> None:
    kept, gone = await finished(store, NOW), await finished(store, NOW)
    await store.delete(gone.number, NOW, None)
    for uid in (None, ANN.uid):
        events = await store.events(uid=uid)
        assert {event.number for event in events} == {kept.number}
        half = await store.events(uid=uid, until=events[1].seq)
        assert half == events[:2]
