"""What the facts of an attempt mean for its job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd.launcher.protocol import Facts
from aitbcd.lifecycle import Trigger, after
from aitbcd.model import JobState, Reason
from aitbcd.outcome import judge, lost, signal_name


def facts(**more: object) -> Facts:
    known: Facts = {"finished_at": 1_000_000, "exit_code": 0, "signal": None}
    known.update(more)  # type: ignore[typeddict-item]
    return known


@pytest.mark.parametrize(
    ("found", "trigger", "reason", "said"),
    [
        (facts(), Trigger.COMPLETE, None, None),
        (facts(exit_code=3), Trigger.FAIL, Reason.EXIT, "exited with status 3"),
        (
            facts(exit_code=2, refused_forks=7),
            Trigger.FAIL,
            Reason.EXIT,
            "exited with status 2; it had as many processes and threads as one job may have "
            "([jobs] processes)",
        ),
        (facts(refused_forks=7), Trigger.COMPLETE, None, None),
        (facts(exit_code=None, signal=9), Trigger.FAIL, Reason.SIGNAL, "ended by SIGKILL"),
        (
            facts(exit_code=None, signal=15, ended_by="timeout"),
            Trigger.FAIL,
            Reason.TIMEOUT,
            "ran into its time limit",
        ),
        (
            facts(exit_code=None, cannot_start="cannot start x: No such file or directory"),
            Trigger.FAIL,
            Reason.CANNOT_START,
            "cannot start x: No such file or directory",
        ),
        (
            facts(exit_code=None, signal=15, ended_by="shutdown"),
            Trigger.FAIL,
            Reason.LOST,
            "ended because the service or the machine was stopped",
        ),
    ],
)
def test_each_kind_of_end(
    found: Facts, trigger: Trigger, reason: Reason | None, said: str | None
) -> None:
    decided = judge(found, JobState.RUNNING, retries_left=0)
    assert (decided.trigger, decided.ending.reason, decided.ending.message) == (
        trigger,
        reason,
        said,
    )


def test_a_program_that_catches_the_time_limit_has_still_run_into_it() -> None:
    decided = judge(facts(ended_by="timeout"), JobState.RUNNING, retries_left=5)
    assert (decided.trigger, decided.ending.reason) == (Trigger.FAIL, Reason.TIMEOUT)


@pytest.mark.parametrize("found", [facts(), facts(exit_code=1), facts(exit_code=None, signal=9)])
def test_a_canceled_job_is_canceled_however_it_ended(found: Facts) -> None:
    decided = judge(found, JobState.CANCELING, retries_left=3)
    assert (decided.trigger, decided.ending.reason) == (Trigger.CANCELED, Reason.CANCELED)


def test_processes_that_would_not_die_make_a_cancellation_fail_and_are_named() -> None:
    decided = judge(facts(undead=["77 python"]), JobState.CANCELING, retries_left=3)
    assert (decided.trigger, decided.ending.reason) == (Trigger.FAIL, Reason.CANCELLATION_FAILED)
    assert "77 python" in (decided.ending.message or "")


@pytest.mark.parametrize(
    ("found", "is_retried"),
    [
        (facts(exit_code=1), True),
        (facts(exit_code=None, signal=11), True),
        (facts(exit_code=None, signal=15, ended_by="shutdown"), True),
        (facts(exit_code=None, cannot_start="x"), False),
        (facts(ended_by="timeout"), False),
        (facts(), False),
    ],
)
def test_only_what_another_attempt_may_mend_is_retried(found: Facts, *, is_retried: bool) -> None:
    decided = judge(found, JobState.RUNNING, retries_left=1)
    assert (decided.trigger is Trigger.REQUEUE) == is_retried
    assert judge(found, JobState.RUNNING, retries_left=0).trigger is not Trigger.REQUEUE


def test_lost_is_failed_or_retried_or_what_was_wished() -> None:
    def trigger(status: JobState, retries: int, left: list[str]) -> tuple[Trigger, Reason | None]:
        decided = lost(5, "gone", status, retries_left=retries, left=left)
        return decided.trigger, decided.ending.reason

    assert trigger(JobState.RUNNING, 0, []) == (Trigger.FAIL, Reason.LOST)
    assert trigger(JobState.RUNNING, 1, []) == (Trigger.REQUEUE, Reason.LOST)
    assert trigger(JobState.CANCELING, 1, []) == (Trigger.CANCELED, Reason.CANCELED)
    assert trigger(JobState.CANCELING, 1, ["7 x"]) == (Trigger.FAIL, Reason.CANCELLATION_FAILED)


@given(
    st.sampled_from([JobState.ASSIGNED, JobState.RUNNING, JobState.CANCELING]),
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, 64),
    st.sampled_from([None, "cancel", "timeout", "shutdown"]),
    st.lists(st.just("7 x"), max_size=1),
    st.integers(0, 2),
)
def test_whatever_the_facts_the_move_is_legal(
    status: JobState,
    code: int | None,
    number: int | None,
    ended_by: str | None,
    undead: list[str],
    retries: int,
) -> None:
    found = facts(exit_code=code, signal=number, ended_by=ended_by, undead=undead)
    decided = judge(found, status, retries_left=retries)
    # That a program ran at all is committed before its end.
    ran = JobState.RUNNING if status is JobState.ASSIGNED else status
    target = after(ran, decided.trigger)
    assert (decided.ending.reason is None) == (target is JobState.COMPLETED)


def test_signals_have_their_names() -> None:
    assert [signal_name(11), signal_name(200)] == ["SIGSEGV", "signal 200"]
