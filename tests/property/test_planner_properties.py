"""The planner against a stepper of single seconds, and the oracle against all schedules there are."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail.carbon.lower_bound import bound_kg, cells_of, oracle_kg
from curtail.commands.simulate.run import Options, simulate
from curtail.grid.trace import Trace

PERIOD = 300
T0 = 1_767_225_600.0
TRAIN_W, IDLE_W = 2024.0, 468.0

levels = st.sampled_from([0.0, 12.5, 60.0, 99.9, 100.0, 130.0, 460.0])


@st.composite
def traces(draw, most_regions: int = 3, most_slots: int = 7, steady: int = 1) -> Trace:
    spells = draw(st.integers(2, most_slots))
    count = spells * steady  # every value stays for `steady` slots
    regions = [f"R{i}" for i in range(draw(st.integers(1, most_regions)))]
    # one region that is never 0, or zeros everywhere would be doubted
    drawn = {r: draw(st.lists(levels, min_size=spells, max_size=spells)) for r in regions}
    values = {r: tuple(value for value in row for _ in range(steady)) for r, row in drawn.items()}
    values["DIRTY"] = (500.0,) * count
    return Trace("t", tuple(T0 + PERIOD * i for i in range(count)), values, float(PERIOD))


def options(trace: Trace, work: float, **more: object) -> Options:
    base: dict[str, object] = {
        "trace": None, "unit": "g/kWh", "regions": tuple(trace.values), "work_site_seconds": work,
        "power_train_w": TRAIN_W, "power_idle_w": IDLE_W, "enter_dwell_s": 0.0,
    }  # fmt: skip
    return Options(**{**base, **more})


def stepped(
    trace: Trace, work: float, load: int, stop: int, sync: int, length: int
) -> tuple[float, float, float, float]:
    """(hours, kWh, kg, site-seconds) of training below 100 without a forecast, second by second."""
    phase = dict.fromkeys(trace.values, "paused")
    until = dict.fromkeys(trace.values, 0)
    end, kwh, kg, left, round_end = PERIOD * len(trace.stamps), 0.0, 0.0, work, None

    def draw(region: str, t: float, seconds: float, watts: float) -> None:
        nonlocal kwh, kg
        kwh += watts * seconds / 3.6e6
        kg += watts * seconds / 3.6e9 * trace.values[region][int(t // PERIOD)]

    for t in range(end):
        for region, values in trace.values.items():
            if phase[region] in ("start", "sync", "drain") and t >= until[region]:
                phase[region] = "paused" if phase[region] == "drain" else "train"
            clean = values[t // PERIOD] < 100.0
            if clean and phase[region] == "paused":
                phase[region], until[region] = "start", t + load
            elif not clean and phase[region] in ("start", "train", "sync"):
                phase[region], until[region] = "drain", t + stop
        training = [r for r in phase if phase[r] == "train"]
        if len(training) < 2:
            round_end = None
        elif round_end is None:
            round_end = t + length
        elif t >= round_end:
            round_end = None
            for region in training:
                phase[region], until[region] = "sync", t + sync
            training = []
        last = len(training) >= left
        seconds = left / len(training) if last else 1.0
        for region in phase:
            if phase[region] != "paused":
                draw(region, t, seconds, TRAIN_W if phase[region] == "train" else IDLE_W)
        left -= seconds * len(training)
        if last:
            finish = t + seconds
            ends = {r: finish + stop if phase[r] != "drain" else float(until[r]) for r in phase if phase[r] != "paused"}
            for region, moment in ends.items():
                at = finish
                while at < min(moment, end):
                    following = min(moment, end, (at // PERIOD + 1) * PERIOD)
                    draw(region, at, following - at, IDLE_W)
                    at = following
            return min(end, max(ends.values())) / 3600.0, kwh, kg, work
    return end / 3600.0, kwh, kg, work - left


@settings(max_examples=40, deadline=None)
@given(
    traces(), st.integers(1, 4000), st.integers(1, 200), st.integers(1, 60), st.integers(1, 90), st.integers(60, 900)
)
def test_events_give_what_single_seconds_give(trace, work, load, stop, sync, length):
    asked = options(trace, float(work), load_s=load, stop_s=stop, sync_s=sync, round_s=length)
    found, _ = simulate(asked, trace, "none")
    hours, kwh, kg, done = stepped(trace, float(work), load, stop, sync, length)
    assert found["work_done_site_seconds"] == pytest.approx(done, abs=1e-4)
    assert found["runtime_h"] == pytest.approx(hours, abs=1e-7)
    assert found["energy_kwh"] == pytest.approx(kwh, rel=1e-6, abs=1e-9)
    assert found["kg_attributed"] == pytest.approx(kg, rel=1e-6, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(traces(most_slots=30), st.integers(600, 9000), st.sampled_from(["perfect", "none"]), st.booleans())
def test_no_plan_beats_the_oracle_and_every_plan_adds_up(trace, work, forecast, hurried):
    span = trace.end - trace.start
    asked = options(trace, float(work), deadline_h=span / 3600.0 if hurried else None, min_window_s=0.0, load_s=10.0)
    found, outcome = simulate(asked, trace, forecast)
    assert found["complete"] == (found["work_left_site_seconds"] == 0)
    assert sum(site["train_s"] for site in found["sites"].values()) == pytest.approx(found["work_done_site_seconds"])
    assert sum(site["kg"] for site in found["sites"].values()) == pytest.approx(found["kg_attributed"])
    if forecast == "perfect":
        assert found["curtailed_energy_pct"] == pytest.approx(100.0) or any("hold" in w for _, _, w in outcome.spells)
        assert found["dirty_train_s"] == 0.0
    assert found["oracle_kg"] is not None and found["oracle_kg"] <= found["kg_attributed"] + 1e-9


@settings(max_examples=40, deadline=None)
@given(traces(most_slots=16, steady=4), st.floats(0.05, 0.95))
def test_a_deadline_that_can_be_met_is_met_when_the_forecast_is_right(trace, part):
    quick = {"load_s": 10.0, "stop_s": 5.0, "min_window_s": 0.0, "sync_s": 0.0}
    everything, _ = simulate(options(trace, 1e9, **quick), trace, "perfect")
    work = part * everything["work_done_site_seconds"]
    if work < 1.0:
        return
    hurried, _ = simulate(options(trace, work, **quick), trace, "perfect")
    span = (trace.end - trace.start) / 3600.0
    planned, _ = simulate(options(trace, work, deadline_h=span, **quick), trace, "perfect")
    assert hurried["complete"] and planned["complete"] and planned["deadline_met"]
    assert planned["runtime_h"] >= hurried["runtime_h"] - 1e-9


# -- the oracle ----------------------------------------------------------------


def every_schedule(cells: list[tuple[float, float]], work: float, watts: float) -> float | None:
    """The least kg over all ways to fill whole cells and at most one part of a cell."""
    best = None
    indices = range(len(cells))
    for size in range(len(cells) + 1):
        for chosen in combinations(indices, size):
            seconds = sum(cells[i][0] for i in chosen)
            grams = sum(cells[i][0] * cells[i][1] for i in chosen)
            rest = work - seconds
            if rest < -1e-9:
                continue
            ways = [grams] if abs(rest) <= 1e-9 else []
            ways += [grams + rest * cells[i][1] for i in indices if i not in chosen and cells[i][0] >= rest > 0]
            if ways:
                kg = min(ways) * watts / 3.6e9
                best = kg if best is None else min(best, kg)
    return best


@settings(max_examples=100, deadline=None)
@given(traces(most_regions=2, most_slots=4), st.integers(1, 2400), st.integers(1, 1500), st.sampled_from([None, 100.0]))
def test_the_oracle_is_the_best_of_all_schedules(trace, work, bound, cap):
    regions = [region for region in trace.values if region != "DIRTY"]
    # cells by hand: seconds of each slot before the bound
    cells = []
    for region in regions:
        for index, mci in enumerate(trace.values[region]):
            seconds = min(PERIOD, bound - PERIOD * index)
            if seconds > 0 and (cap is None or mci < cap):
                cells.append((float(seconds), mci))
    found = oracle_kg(cells_of(trace, regions, float(bound), cap), float(work), TRAIN_W)
    best = every_schedule(cells, float(work), TRAIN_W)
    assert (found is None) == (best is None)
    if best is not None:
        assert found == pytest.approx(best, rel=1e-12, abs=1e-15)


def test_where_curtailed_power_does_not_hold_the_work_the_bound_takes_any():
    trace = Trace("t", (T0, T0 + 300), {"A": (50.0, 400.0)}, 300.0)
    assert bound_kg(trace, ["A"], 600.0, 100.0, 300.0, 3.6e6) == pytest.approx(300 * 0.05)
    assert bound_kg(trace, ["A"], 600.0, 100.0, 450.0, 3.6e6) == pytest.approx(300 * 0.05 + 150 * 0.4)
    assert bound_kg(trace, ["A"], 600.0, 100.0, 601.0, 3.6e6) is None
