"""The planner on courses small enough to check by hand, and what its policy sees of a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from curtail.commands.simulate.run import Options, simulate
from curtail.errors import UsageError
from curtail.grid.trace import Trace
from curtail.planner.observed_signal import course_of, missed, sight
from curtail.planner.planner import Outcome

T0 = 1_767_225_600.0
KWH = 3.6e6


def trace(**values: list[float | None]) -> Trace:
    count = len(next(iter(values.values())))
    return Trace("t", tuple(T0 + 300.0 * i for i in range(count)), {r: tuple(v) for r, v in values.items()}, 300.0)


def play(given: Trace, work: float, forecast: str | Trace = "none", **more: float | int) -> tuple[dict, Outcome]:
    base = {"load_s": 60.0, "stop_s": 10.0, "sync_s": 0.0, "enter_dwell_s": 0.0, "min_window_s": 0.0, **more}
    regions = tuple(given.values)
    options = Options(Path("t"), "g/kWh", regions, work, 2000.0, 500.0, **base)  # type: ignore[arg-type]
    return simulate(options, given, forecast)


def phases(outcome: Outcome) -> list[tuple[float, str]]:
    return [(at - T0, reason.split(":")[0]) for at, _, reason in outcome.spells]


def test_a_window_is_a_start_training_and_a_drain_and_its_figures_are_exact():
    found, outcome = play(trace(A=[400, 50, 80, 400, 400]), 1e6)
    assert phases(outcome) == [(300.0, "start"), (900.0, "drain")]
    assert not found["complete"] and found["work_done_site_seconds"] == 540.0
    train = 240 * 50 + 300 * 80
    assert found["kg_attributed"] == pytest.approx((2000 * train + 500 * (60 * 50 + 10 * 400)) / KWH / 1000, rel=1e-12)
    assert found["energy_kwh"] == pytest.approx((2000 * 540 + 500 * 70) / KWH, rel=1e-12)
    assert found["curtailed_energy_pct"] == pytest.approx(100 * (1 - 500 * 10 / (2000 * 540 + 500 * 70)))
    assert found["runtime_h"] == 1500 / 3600 and found["dirty_train_s"] == 0.0


def test_with_a_forecast_the_drain_lies_within_the_window():
    found, outcome = play(trace(A=[400, 50, 80, 400, 400]), 1e6, "perfect")
    assert phases(outcome) == [(300.0, "start"), (890.0, "drain")]
    assert found["curtailed_energy_pct"] == 100.0


def test_the_run_ends_in_the_second_in_which_its_work_is_done():
    found, outcome = play(trace(A=[50] * 9), 123.25)
    assert found["complete"] and outcome.done == 123.25
    assert found["runtime_h"] * 3600 == pytest.approx(60 + 123.25 + 10, abs=1e-5)


def test_standing_by_is_counted_apart_from_the_start_to_the_end_of_the_run():
    found, _ = play(trace(A=[400, 50, 400], B=[400, 400, 400]), 1e6, standing_idle_w=100.0)
    a, b = 100 * (300 * 400 + 290 * 400), 100 * 900 * 400
    assert found["kg_reserved"] - found["kg_attributed"] == pytest.approx((a + b) / KWH / 1000, rel=1e-12)
    standing = play(trace(A=[400, 50, 400], B=[400, 400, 400]), 1e6)[0]["standing_kwh"]
    assert standing == pytest.approx(500 * (590 + 900) / KWH), "a machine that nobody switches off idles"


def test_the_full_boundary_adds_cooling_and_the_making_of_the_machines():
    found, _ = play(trace(A=[400, 50, 400]), 1e6, pue=1.5, embodied_g_per_site_h=40.0)
    assert found["kg_full"] == pytest.approx(found["kg_reserved"] * 1.5 + 0.04 * 0.25)


def test_federated_rounds_cost_all_sites_an_exchange_and_a_sole_site_none():
    alone, _ = play(trace(A=[50] * 9), 1500.0, sync_s=40.0, round_s=200.0)
    assert alone["runtime_h"] * 3600 == pytest.approx(60 + 1500 + 10, abs=1e-5)
    two, _ = play(trace(A=[50] * 9, B=[60] * 9), 1500.0, sync_s=40.0, round_s=200.0)
    assert two["runtime_h"] * 3600 == pytest.approx(60 + 750 + 3 * 40 + 10, abs=1e-5)


def test_a_start_at_another_power():
    found, _ = play(trace(A=[50] * 3), 100.0, power_load_w=2000.0)
    assert found["energy_kwh"] == pytest.approx((2000 * 160 + 500 * 10) / KWH)


def test_an_unknown_value_stops_training_and_is_booked_without_carbon():
    found, outcome = play(trace(A=[50, None, 50, 400], B=[400] * 4), 1e6)
    assert (300.0, "drain") in phases(outcome) and found["unknown_kwh"] > 500 * 10 / KWH - 1e-12
    assert found["kg_attributed"] == pytest.approx(
        (2 * 2000 * 240 * 50 + 2 * 500 * 60 * 50 + 500 * 10 * 400) / KWH / 1000
    )


def test_a_cheap_gap_is_held_at_idle_power_without_a_second_start():
    found, outcome = play(trace(A=[50, 50, 101, 50, 50, 400]), 1e6, "perfect", load_s=100.0)
    assert [p for _, p in phases(outcome)] == ["start", "hold", "train", "drain"]
    assert found["starts"] == 1 and found["work_done_site_seconds"] == 200 + 300 + 590
    held = 500 * 300 / KWH  # the job's, not standing by
    assert found["energy_kwh"] == pytest.approx((2000 * 1090 + 500 * 110) / KWH + held)
    assert found["curtailed_energy_pct"] == pytest.approx(100 * (1 - held / found["energy_kwh"]))


def test_a_late_signal_is_obeyed_late_and_the_truth_is_booked():
    found, outcome = play(trace(A=[400, 50, 50, 400, 400]), 1e6, signal_delay_s=300.0)
    assert phases(outcome) == [(600.0, "start"), (1200.0, "drain")]
    assert found["dirty_train_s"] == 300.0 and found["kg_attributed"] == pytest.approx(
        (2000 * (240 * 50 + 300 * 400) + 500 * (60 * 50 + 10 * 400)) / KWH / 1000
    )


def test_a_dwell_without_a_forecast_delays_the_start():
    _, outcome = play(trace(A=[400, 50, 50, 50, 400]), 1e6, enter_dwell_s=300.0)
    assert phases(outcome)[0] == (600.0, "start")


def test_a_forecast_from_a_file_can_err_and_the_reading_corrects_it():
    truth, wrong = trace(A=[50, 50, 400, 50, 400]), trace(A=[50, 50, 50, 50, 400])
    found, outcome = play(truth, 1e6, wrong)
    assert phases(outcome)[:2] == [(0.0, "start"), (600.0, "drain")] and found["dirty_train_s"] == 0.0
    with pytest.raises(UsageError, match="does not overlap"):
        sight(truth, "A", 100.0, 0.0, Trace("old", (0.0, 300.0), {"A": (1.0, 1.0)}, 300.0))


def test_a_missed_end_extends_what_is_seen_until_the_next_window_at_most():
    course = course_of(trace(A=[50, 400, 460, 60, 500, 500]), "A")
    seen = [(point - T0, value) for point, value in missed(course, 100.0, 300.0)]
    assert seen == [(0, 50), (600, 460), (900, 60), (1500, 500), (1800, None)]
    seen = [(point - T0, value) for point, value in missed(course, 100.0, 450.0)]
    assert seen == [(0, 50), (750, 460), (900, 60), (1650, 500), (1800, None)]
    assert [point for point, _ in missed(course, 100.0, 5000.0)] == [T0, T0 + 900, T0 + 1800]
    assert missed(course, 100.0, 0.0) == course


def test_a_missed_reading_trains_on_dirty_power_and_a_missed_forecast_does_not():
    given = trace(A=[50, 50, 50, 50, 400, 400])
    forecast_only = play(given, 1e6, "perfect", forecast_miss_s=300.0)[0]
    both = play(given, 1e6, "perfect", forecast_miss_s=300.0, reading_miss_s=300.0)[0]
    assert forecast_only["dirty_train_s"] == 0.0 and forecast_only["curtailed_energy_pct"] < 100.0
    assert both["dirty_train_s"] == 290.0


def test_readings_arrive_late_and_stay_valid_until_the_next_is_due():
    late = sight(trace(A=[10, 20]), "A", 100.0, 120.0, "none")
    assert late.reading(T0 + 119)[0].mci is None and late.reading(T0 + 119)[1] == T0 + 120
    reading, following = late.reading(T0 + 120)
    assert (reading.mci, reading.point_time, reading.valid_until, following) == (10, T0, T0 + 420, T0 + 420)
    assert late.reading(T0 + 720)[0].mci is None, "the trace has ended"
