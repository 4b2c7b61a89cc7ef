"""THE state machine of a job: one table, one function. It knows no clock, no SQL, no process."""

from __future__ import annotations

from enum import Enum

from aitbcd.errors import IllegalTransition
from aitbcd.model import JobState


class Trigger(str, Enum):
    """What can happen to a job."""

    ASSIGN = "assign"
    RUN = "run"
    COMPLETE = "complete"
    FAIL = "fail"
    #: The owner wants it ended, and something of it may run.
    CANCEL = "cancel"
    #: It is ended as wished: nothing of it runs.
    CANCELED = "canceled"
    #: Back to the queue, for another attempt.
    REQUEUE = "requeue"


_S, _T = JobState, Trigger

TRANSITIONS: dict[JobState, dict[Trigger, JobState]] = {
    _S.PENDING: {
        _T.ASSIGN: _S.ASSIGNED,
        _T.FAIL: _S.FAILED,
        _T.CANCELED: _S.CANCELED,
    },
    _S.ASSIGNED: {
        _T.RUN: _S.RUNNING,
        _T.FAIL: _S.FAILED,
        _T.CANCEL: _S.CANCELING,
        _T.CANCELED: _S.CANCELED,
        _T.REQUEUE: _S.PENDING,
    },
    _S.RUNNING: {
        _T.COMPLETE: _S.COMPLETED,
        _T.FAIL: _S.FAILED,
        _T.CANCEL: _S.CANCELING,
        _T.REQUEUE: _S.PENDING,
    },
    # A failure of a job that is being canceled is always ``cancellation_failed``.
    _S.CANCELING: {
        _T.CANCELED: _S.CANCELED,
        _T.FAIL: _S.FAILED,
    },
    _S.COMPLETED: {},
    _S.FAILED: {},
    _S.CANCELED: {},
}


def after(state: JobState, trigger: Trigger, *, job: object = "?") -> JobState:
    """Return the state that follows, or raise ``IllegalTransition`` naming all three."""
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise IllegalTransition(
            f"job {job} is {state.value}: {trigger.value} is not possible",
            job=job,
            state=state.value,
            trigger=trigger.value,
        ) from None


def diagram() -> str:
    """Return the table as text, a line a transition, for the documentation."""
    rows = [
        f"{state.value:<10} --{trigger.value}--> {target.value}"
        for state, moves in TRANSITIONS.items()
        for trigger, target in moves.items()
    ]
    return "\n".join(rows)
