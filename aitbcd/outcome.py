"""Makes of the facts of an attempt what becomes of its job: done, failed, canceled, or again.

Pure. Facts are ``launcher.protocol.Facts``; what they mean for the job is decided here alone.
"""

from __future__ import annotations

import signal
from typing import NamedTuple

from msgspec.structs import replace

from aitbcd.causes import Finding
from aitbcd.launcher.protocol import Facts
from aitbcd.lifecycle import Trigger
from aitbcd.model import Ending, JobState, Reason, Snapshot

#: Failures that another attempt may mend; a wish, a limit or a missing program it cannot.
_RETRIED = frozenset({Reason.EXIT, Reason.SIGNAL, Reason.LOST})
#: Ends behind which there can be a cause.
_EXPLAINED = frozenset({Reason.EXIT, Reason.SIGNAL, Reason.TIMEOUT})
#: What a shell exits with whose program was killed.
_EXIT_OF_KILLED = 128 + signal.SIGKILL


class Outcome(NamedTuple):
    trigger: Trigger
    ending: Ending

    @property
    def wants_a_cause(self) -> bool:
        is_failure = self.trigger in (Trigger.FAIL, Trigger.REQUEUE)
        return is_failure and self.ending.reason in _EXPLAINED

    def explained(self, finding: Finding, snapshot: Snapshot) -> Outcome:
        """Return it with its cause."""
        message = f"{self.ending.message}: {finding.message}"
        cause = replace(self.ending, cause=finding.cause, message=message, snapshot=snapshot)
        return self._replace(ending=cause)


def judge(facts: Facts, status: JobState, *, retries_left: int) -> Outcome:
    """Return what follows from an attempt's end for a job in this status."""
    reason, message = _reason(facts)
    if status is JobState.CANCELING:
        if facts.get("undead"):
            reason, message = Reason.CANCELLATION_FAILED, _undead(facts)
            return Outcome(Trigger.FAIL, _ending(facts, reason, message))
        return Outcome(Trigger.CANCELED, _ending(facts, Reason.CANCELED, "canceled"))
    ending = _ending(facts, reason, message)
    if reason is None:
        return Outcome(Trigger.COMPLETE, ending)
    if reason in _RETRIED and retries_left > 0:
        return Outcome(Trigger.REQUEUE, ending)
    return Outcome(Trigger.FAIL, ending)


def was_killed(facts: Facts) -> bool:
    """Tell whether its program was ended by SIGKILL, and not by us."""
    if facts.get("ended_by"):
        return False
    return facts.get("signal") == signal.SIGKILL or facts.get("exit_code") == _EXIT_OF_KILLED


def lost(at: int, message: str, status: JobState, *, retries_left: int, left: list[str]) -> Outcome:
    """Return what follows when nobody is left who saw the attempt's end."""
    facts: Facts = {"finished_at": at, "undead": left}
    if status is JobState.CANCELING:
        return judge(facts, status, retries_left=0)
    ending = _ending(facts, Reason.LOST, message)
    if left:
        ending = _ending(facts, Reason.LOST, f"{message}; {_undead(facts)}")
    return Outcome(Trigger.REQUEUE if retries_left > 0 else Trigger.FAIL, ending)


def _reason(facts: Facts) -> tuple[Reason | None, str | None]:
    if refusal := facts.get("cannot_start"):
        if facts.get("storage"):
            return Reason.STORAGE, refusal
        return Reason.CANNOT_START, refusal
    match facts.get("ended_by"):
        case "timeout":
            return Reason.TIMEOUT, _and_undead("ran into its time limit", facts)
        case "shutdown":
            return Reason.LOST, "ended because the service or the machine was stopped"
    if number := facts.get("signal"):
        message = f"ended by {signal_name(number)}{_refused_forks(facts)}"
        return Reason.SIGNAL, _and_undead(message, facts)
    code = facts.get("exit_code")
    if code is None:
        return Reason.SIGNAL, _undead(facts)
    if code:
        message = f"exited with status {code}{_refused_forks(facts)}"
        return Reason.EXIT, _and_undead(message, facts)
    return None, _undead(facts) if facts.get("undead") else None


def _ending(facts: Facts, reason: Reason | None, message: str | None) -> Ending:
    return Ending(
        finished_at=facts["finished_at"],
        reason=reason,
        message=message,
        exit_code=facts.get("exit_code"),
        signal=facts.get("signal"),
        user_us=facts.get("user_us", 0),
        system_us=facts.get("system_us", 0),
        max_rss=facts.get("max_rss", 0),
        memory_peak=facts.get("memory_peak"),
    )


def _refused_forks(facts: Facts) -> str:
    if not facts.get("refused_forks"):
        return ""
    return "; it had as many processes and threads as one job may have ([jobs] processes)"


def _undead(facts: Facts) -> str:
    return "processes that SIGKILL did not end: " + ", ".join(facts.get("undead", []))


def _and_undead(message: str, facts: Facts) -> str:
    return f"{message}; {_undead(facts)}" if facts.get("undead") else message


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
