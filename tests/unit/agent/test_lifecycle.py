"""The life of an agent: the table is closed, and the energy phases follow the states."""

from __future__ import annotations

import itertools

import pytest

from agent.lifecycle import NEXT, WITH_JOB, Event, State, advance, energy_phase
from curtail.errors import RefusedTransition


def test_every_state_can_reach_the_end():
    ending = {State.LEFT}
    while True:
        more = {state for (state, _), target in NEXT.items() if target in ending} - ending
        if not more:
            break
        ending |= more
    assert ending == set(State)


def test_nothing_follows_the_end():
    assert not [key for key in NEXT if key[0] is State.LEFT]


def test_every_state_can_be_reached():
    reached = {State.JOINING}
    for _ in State:
        reached |= {target for (state, _), target in NEXT.items() if state in reached}
    assert reached == set(State)


@pytest.mark.parametrize("state,event", [k for k in itertools.product(State, Event) if k not in NEXT])
def test_a_forbidden_event_raises(state, event):
    with pytest.raises(RefusedTransition, match=state.value):
        advance(state, event)


def test_an_allowed_event_gives_the_tables_state():
    assert all(advance(*key) is target for key, target in NEXT.items())


def test_an_agent_never_leaves_while_its_job_is_alive():
    assert not [state for state in WITH_JOB if NEXT.get((state, Event.LEAVE))]


def test_energy_phases():
    assert energy_phase(State.IDLE, None) == energy_phase(State.BACKOFF, "train") == "paused"
    assert energy_phase(State.STARTING, None) == "start"
    assert energy_phase(State.TRAINING, "train") == "train"
    assert energy_phase(State.TRAINING, "sync") == energy_phase(State.HOLDING, "sync") == "sync"
    assert energy_phase(State.HOLDING, "hold") == energy_phase(State.TRAINING, "hold") == "hold"
    assert energy_phase(State.HOLDING, "train") == "train", "the last step before a hold"
    assert energy_phase(State.DRAINING, "train") == energy_phase(State.STOPPING, None) == "drain"
