"""The state machine against the transitions that users and tests outside depend on."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd.errors import IllegalTransition
from aitbcd.lifecycle import TRANSITIONS, Trigger, after, diagram
from aitbcd.model import ACTIVE, FINAL, JobState

#: As the design fixes them, and no others.
FIXED = """
    pending -> assigned       assigned -> running       running -> completed
    pending -> failed         assigned -> failed        running -> failed
    pending -> canceled       assigned -> canceled
    assigned -> canceling     running -> canceling
    canceling -> canceled     canceling -> failed
    assigned -> pending       running -> pending
"""

triggers = st.lists(st.sampled_from(Trigger), max_size=30)


def fixed() -> set[tuple[JobState, JobState]]:
    words = FIXED.replace("->", " ").split()
    return {(JobState(a), JobState(b)) for a, b in zip(words[::2], words[1::2], strict=True)}


def walk(events: list[Trigger]) -> list[JobState]:
    """Return the states that a job goes through; what is illegal leaves it where it is."""
    states = [JobState.PENDING]
    for event in events:
        try:
            states.append(after(states[-1], event))
        except IllegalTransition:
            continue
    return states


def test_the_table_has_the_fixed_transitions_and_no_others() -> None:
    table = {(state, target) for state, moves in TRANSITIONS.items() for target in moves.values()}
    assert table == fixed()


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_no_two_triggers_of_a_state_lead_to_the_same() -> None:
    for moves in TRANSITIONS.values():
        assert len(set(moves.values())) == len(moves)


@given(triggers)
def test_every_sequence_of_events_stays_legal(events: list[Trigger]) -> None:
    states = walk(events)
    assert set(pairwise(states)) <= fixed()


@given(triggers, triggers)
def test_what_is_final_stays_as_it_is(before: list[Trigger], later: list[Trigger]) -> None:
    end = walk(before)[-1]
    if end in FINAL:
        assert walk([*before, *later])[-1] is end


@pytest.mark.parametrize("state", sorted(FINAL))
@pytest.mark.parametrize("trigger", Trigger)
def test_nothing_moves_a_final_state(state: JobState, trigger: Trigger) -> None:
    with pytest.raises(IllegalTransition):
        after(state, trigger)


@given(triggers)
def test_an_end_is_in_reach_from_wherever_a_job_is(events: list[Trigger]) -> None:
    reached = {walk(events)[-1]}
    for _ in JobState:
        reached |= {target for state in reached for target in TRANSITIONS[state].values()}
    assert reached & FINAL


@given(triggers)
def test_nothing_completes_that_did_not_run(events: list[Trigger]) -> None:
    states = walk(events)
    if JobState.COMPLETED in states:
        assert states[states.index(JobState.COMPLETED) - 1] is JobState.RUNNING


@given(triggers)
def test_a_canceling_job_neither_completes_nor_is_repeated(events: list[Trigger]) -> None:
    states = walk(events)
    if JobState.CANCELING in states:
        rest = states[states.index(JobState.CANCELING) + 1 :]
        assert set(rest) <= {JobState.CANCELED, JobState.FAILED}


def test_final_and_active_states_share_none_and_leave_only_pending() -> None:
    assert not FINAL & ACTIVE
    assert set(JobState) - FINAL - ACTIVE == {JobState.PENDING}
    assert [state.is_final for state in JobState] == [state in FINAL for state in JobState]
    assert [state.is_active for state in JobState] == [state in ACTIVE for state in JobState]


def test_a_refusal_names_job_state_and_event() -> None:
    with pytest.raises(IllegalTransition) as refused:
        after(JobState.COMPLETED, Trigger.CANCEL, job=42)
    assert refused.value.detail == "job 42 is completed: cancel is not possible"
    assert refused.value.fields == {"job": 42, "state": "completed", "trigger": "cancel"}


def test_the_diagram_shows_every_transition_once() -> None:
    lines = diagram().splitlines()
    assert len(lines) == len(set(lines)) == len(fixed())
    for state, moves in TRANSITIONS.items():
        for trigger, target in moves.items():
            assert f"{state.value:<10} --{trigger.value}--> {target.value}" in lines
