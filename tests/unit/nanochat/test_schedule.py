"""Hyperparameters as functions of tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail.errors import ConfigError
from nanochat.schedule import Schedule, default_weight_decay, joint

PLAIN = Schedule(token_budget=1000, batch_tokens=1)


def test_the_rate_is_constant_and_then_falls_to_zero_over_the_last_two_fifths():
    assert [PLAIN.at(t).lr_scale for t in (0, 600)] == [1.0, 1.0]
    assert PLAIN.at(800).lr_scale == pytest.approx(0.5)
    assert PLAIN.at(1000).lr_scale == 0.0


def test_the_rate_can_end_above_zero():
    schedule = Schedule(1000, 1, final_lr=0.1)
    assert schedule.at(1000).lr_scale == pytest.approx(0.1)
    assert schedule.at(800).lr_scale == pytest.approx(0.55)


def test_momentum_rises_over_300_steps_of_the_batch():
    schedule = Schedule(token_budget=10**6, batch_tokens=100)
    assert schedule.at(0).muon_momentum == 0.85
    assert schedule.at(150 * 100).muon_momentum == pytest.approx(0.90)
    assert schedule.at(300 * 100).muon_momentum == schedule.at(10**6).muon_momentum == 0.95


def test_weight_decay_falls_linearly_to_zero():
    schedule = Schedule(1000, 1, weight_decay=default_weight_decay(20))
    assert schedule.at(0).weight_decay == pytest.approx(0.072)
    assert schedule.at(500).weight_decay == pytest.approx(0.036)
    assert schedule.at(1000).weight_decay == 0.0


def test_warmup_moves_from_the_first_step_on():
    schedule = Schedule(1000, 10, warmup_tokens=100)
    assert schedule.at(0).lr_scale == pytest.approx(0.1)
    assert schedule.at(50).lr_scale == pytest.approx(0.6)
    assert schedule.at(90).lr_scale == 1.0


@settings(deadline=None)
@given(
    st.integers(-(10**9), 10**13),
    st.integers(1, 10**12),
    st.integers(1, 10**9),
    st.integers(0, 10**9),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_nothing_leaves_its_range_whatever_the_tokens(tokens, budget, batch, warmup, fraction, final):
    schedule = Schedule(budget, batch, warmup_tokens=warmup, warmdown_fraction=fraction, final_lr=final)
    hyper = schedule.at(tokens)
    assert 0 <= hyper.lr_scale <= 1
    assert 0.85 <= hyper.muon_momentum <= 0.95
    assert 0 <= hyper.weight_decay <= schedule.weight_decay


@settings(deadline=None)
@given(st.integers(400, 999), st.integers(1, 1000))
def test_after_the_plateau_more_tokens_never_raise_the_rate(tokens, more):
    assert PLAIN.at(tokens + more).lr_scale <= PLAIN.at(tokens).lr_scale


@pytest.mark.parametrize(
    "wrong",
    [{"token_budget": 0}, {"batch_tokens": 0}, {"warmup_tokens": -1}, {"final_lr": 2}, {"weight_decay": -0.1}],
)
def test_an_impossible_schedule_is_refused(wrong):
    with pytest.raises(ConfigError):
        Schedule(**({"token_budget": 10, "batch_tokens": 1} | wrong))


STEADY = Schedule(token_budget=10**6, batch_tokens=100, momentum_start=0.95)


def test_beside_others_the_rate_grows_and_the_momentum_remembers_more_steps():
    alone, beside = STEADY.at(5000), joint(STEADY, 300, 3**0.5, 3.0).at(5000)
    assert beside.lr_scale == pytest.approx(alone.lr_scale * 3**0.5)
    assert 1 / (1 - beside.muon_momentum) == pytest.approx(3 / (1 - alone.muon_momentum))
    assert beside.weight_decay == alone.weight_decay


def test_with_factors_of_one_the_schedule_is_the_same_object():
    assert joint(STEADY, 300, 1.0, 1.0) is STEADY


def test_the_momentum_never_remembers_more_than_a_sixteenth_of_a_site_s_steps():
    # 10**6 tokens are 1,000 steps of one of ten sites
    assert joint(STEADY, 1000, 1.0, 10.0).at(0).muon_momentum == pytest.approx(1 - 16 / 1000)
    # and 312 of one of 32: a sixteenth is below the 20 steps that the schedule asks for anyway
    assert joint(STEADY, 3200, 1.0, 32.0).at(0).muon_momentum == 0.95


def test_a_momentum_of_one_or_none_stays_in_its_range():
    for momentum in (0.0, 1.0):
        schedule = Schedule(10**6, 100, momentum_start=momentum, momentum_end=momentum)
        assert momentum <= joint(schedule, 300, 1.0, 3.0).at(0).muon_momentum <= 1.0
