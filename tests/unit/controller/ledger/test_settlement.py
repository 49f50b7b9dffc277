"""Settlement: later values become revisions, once, and nothing is changed; figures by both stand side by side."""

from __future__ import annotations

import contextlib
import math

import httpx
import pytest

from controller.home.home import lock
from controller.ledger.historians import ConstantHistory, TraceHistory, open_historians
from controller.ledger.settlement import MARGINAL, History, mean, revisions, settle, settled_entries
from controller.ledger.settlement_thread import BACK_S, Settler, live_settler
from controller.signals.answer import SignalError
from controller.signals.select import Signal, Surroundings
from controller.store.rows import SettledRow
from curtail.carbon.accounting import Basis, Detail, Entry, Totals, add
from curtail.commands.ledger.verify import SettleOptions, look, run_settle
from curtail.errors import CurtailError, Refused, UsageError
from curtail.grid.trace import Trace


def entry(t0, t1, kwh=2.0, mci=50.0, flags=(), region="A", phase="train"):
    basis = Basis(mci, "test", t0, 100.0, flags)
    kg = None if mci is None else kwh * mci / 1000.0
    detail = Detail(kwh, None, None, 0.0, basis=basis)
    return Entry("s", region, phase, t0, t1, 1.0, "constant", 1.0, 1.0, kwh, mci, kg, (mci or 999.0) < 100.0, detail)


HISTORY = History(((0.0, 40.0), (300.0, 80.0), (600.0, 500.0)), 300.0, "later", "2026-01")


def test_a_row_is_settled_by_the_mean_over_its_time():
    assert mean(HISTORY, 0.0, 300.0) == 40.0
    assert mean(HISTORY, 150.0, 450.0) == pytest.approx(60.0)
    assert mean(HISTORY, 100.0, 900.0) == pytest.approx((200 * 40 + 300 * 80 + 300 * 500) / 800)


@pytest.mark.parametrize(("start", "stop"), [(-10.0, 100.0), (600.0, 901.0), (2000.0, 2100.0)])
def test_a_row_whose_time_is_not_known_completely_waits(start, stop):
    assert mean(HISTORY, start, stop) is None
    new, waiting = revisions([(1, entry(start, stop))], {}, HISTORY, MARGINAL, 1.0)
    assert (new, waiting) == ([], 1)


def test_a_gap_in_the_history_is_not_bridged():
    gap = History(((0.0, 40.0), (600.0, 500.0)), 300.0, "later")
    assert mean(gap, 0.0, 300.0) == 40.0 and mean(gap, 200.0, 400.0) is None and mean(gap, 0.0, 900.0) is None


def test_what_is_said_again_adds_nothing_and_what_is_said_otherwise_is_a_revision():
    rows = [(1, entry(0.0, 300.0)), (2, entry(300.0, 600.0))]
    first, _ = revisions(rows, {}, HISTORY, MARGINAL, 10.0)
    assert [(r.entry, r.revision, r.mci, r.kg) for r in first] == [(1, 1, 40.0, 0.08), (2, 1, 80.0, 0.16)]
    known = {row.entry: row for row in first}
    assert revisions(rows, known, HISTORY, MARGINAL, 20.0) == ([], 0)
    changed = History(((0.0, 40.0), (300.0, -7.0), (600.0, 1.0)), 300.0, "later")
    (again,), _ = revisions(rows, known, changed, MARGINAL, 30.0)
    assert (again.entry, again.revision, again.mci, again.kg) == (2, 2, -7.0, 0.0), "less than nothing earns nothing"


def test_settled_figures_stand_beside_those_at_the_decision():
    rows = [(1, entry(0.0, 300.0)), (2, entry(300.0, 600.0, mci=None)), (3, entry(600.0, 900.0, flags=("override",)))]
    later = {
        1: SettledRow(1, MARGINAL, 1, 130.0, 0.26, "later", "", 0.0),
        2: SettledRow(2, MARGINAL, 2, 20.0, 0.04, "later", "", 0.0),
        3: SettledRow(3, MARGINAL, 1, 20.0, 0.04, "later", "", 0.0),
    }
    decided, settled = add(Totals(), [e for _, e in rows]), add(Totals(), settled_entries(rows, later))
    assert (decided.kg_attributed, decided.unknown_kwh) == (pytest.approx(0.2), 2.0)
    assert (settled.kg_attributed, settled.unknown_kwh) == (pytest.approx(0.34), 0.0)
    assert settled.curtailed_kwh == 2.0, "not the one above the threshold, and not the one that was ordered"
    assert settled_entries(rows, {}) == [e for _, e in rows]


# -- in the store --------------------------------------------------------------


@pytest.fixture
def ran(world):
    """An hour of a site that trained at 50 g/kWh, in rows of five minutes."""
    world.ready("a", "job")
    world.beat("a", "job", "train")
    for _ in range(12):
        world.tick(300.0)
    world.store.call(lambda tx: world.service.booking.finish(tx, "a", world.service.replay.now()))
    return world


class Source:
    """Says what the test wants."""

    basis = MARGINAL

    def __init__(self, value=70.0):
        self.value, self.failing, self.asked = value, False, []

    def history(self, region, start, stop):
        self.asked.append((region, start, stop))
        if self.failing:
            raise SignalError("the source is down")
        return History(((start, self.value),), math.inf, "source", "2026")


def test_settling_twice_is_settling_once_and_the_chain_goes_on(ran):
    source = Source()
    first = settle(ran.store.call, source, 1.0)
    rows = len(ran.store.call(lambda tx: tx.entries()))
    assert (first.rows, first.first, first.revised, first.waiting) == (rows, rows, 0, 0)
    records = look(ran.home, None).records
    again = settle(ran.store.call, source, 2.0)
    assert (again.first, again.revised) == (0, 0) and look(ran.home, None).records == records
    source.value = 71.0
    assert settle(ran.store.call, source, 3.0).revised == rows
    found = ran.store.call(lambda tx: tx.settled(MARGINAL))
    assert {row.revision for row in found.values()} == {2} and {row.mci for row in found.values()} == {71.0}
    assert look(ran.home, None).problem == "" and look(ran.home, None).records == records + rows
    assert {e.mci for e in ran.store.call(lambda tx: tx.entries())} == {50.0}, "what was decided on stays"


def test_a_source_that_fails_is_named_and_what_others_settled_stays(ran):
    source = Source()
    source.failing = True
    report = settle(ran.store.call, source, 1.0)
    assert report.problems == ["A: the source is down"] and report.first == 0


def test_the_hourly_settlement_asks_about_the_last_days_only_and_survives_failures(ran):
    source = Source()
    ran.clock.t += BACK_S - 1000.0
    settler = Settler(ran.store.call, [source], ran.clock)
    settler.settle()
    (asked,) = source.asked
    assert asked[1] > ran.clock.t - BACK_S - 301.0, "older rows are left to the command"
    source.failing = True
    settler.settle()
    source.history = lambda region, start, stop: 1 / 0
    settler.settle()
    assert ran.store.call(lambda tx: tx.settled(MARGINAL))


def test_the_settler_of_a_replay_has_nothing_to_do_and_that_of_a_live_run_ends_in_order(ran):
    from dataclasses import replace

    trace = Trace("t", (0.0, 300.0), {"A": (1.0, 2.0), "B": (1.0, 2.0)}, 300.0)
    around = Surroundings(ran.clock, {})
    replayed = live_settler(ran.store.call, ran.config, Signal("trace", ran.source, trace), around)
    replayed.start()
    replayed.stop()
    constant = replace(ran.config, signal=replace(ran.config.signal, source="constant", value=5.0))
    live = live_settler(ran.store.call, constant, Signal("constant", ran.source), around)
    live.start()
    live.stop()
    ran.clock.t += 1.0
    live.settle()
    assert {row.mci for row in ran.store.call(lambda tx: tx.settled(MARGINAL)).values()} == {5.0}


def test_a_trace_settles_by_its_own_values_and_a_constant_by_itself():
    trace = Trace("t", (0.0, 300.0, 600.0), {"col": (1.0, None, 3.0)}, 300.0)
    history = TraceHistory(trace, {"A": "col"}).history("A", 0.0, 900.0)
    assert mean(history, 0.0, 300.0) == 1.0 and mean(history, 0.0, 400.0) is None and mean(history, 600.0, 900.0) == 3.0
    assert TraceHistory(trace, {"A": "col"}).history("B", 0.0, 1.0) is None
    assert mean(ConstantHistory(7.0).history("A", 5.0, 9.0), 5.0, 9.0) == 7.0


def test_watttime_settles_by_its_historical_values_and_electricity_maps_by_averages(ran):
    from dataclasses import replace

    def answer(request):
        if request.url.path == "/login":
            return httpx.Response(200, json={"token": "t"})
        if request.url.path == "/v3/carbon-intensity/history":
            row = {"zone": "Z", "carbonIntensity": 300.0, "datetime": "2026-01-11T17:00:00Z", "isEstimated": True}
            return httpx.Response(200, json={"zone": "Z", "history": [row]})
        points = [
            {"point_time": f"2026-01-11T{16 + n // 12:02d}:{5 * (n % 12):02d}:00Z", "value": 100.0 + n}
            for n in range(24)
        ]
        meta = {
            "region": "NORTH",
            "signal_type": "co2_moer",
            "units": "lbs_co2_per_mwh",
            "data_point_period_seconds": 300,
        }
        return httpx.Response(200, json={"data": points, "meta": {**meta, "model": {"date": "2025-06-01"}}})

    signal = replace(ran.config.signal, source="watttime", average="electricitymaps")
    region = replace(ran.config.regions["A"], signal="NORTH", zone="Z")
    config = replace(ran.config, signal=signal, regions={"A": region, "B": ran.config.regions["B"]})
    names = {"WATTTIME_USER": "u", "WATTTIME_PASSWORD": "p", "ELECTRICITYMAPS_TOKEN": "t"}
    marginal, average = open_historians(config, Surroundings(ran.clock, names, httpx.MockTransport(answer)), None)
    start = 1768150800.0  # 2026-01-11 17:00 UTC
    found = marginal.history("A", start, start + 600.0)
    assert mean(found, start, start + 300.0) == pytest.approx(112.0 * 0.45359237)
    assert (found.model, found.source) == ("2025-06-01", "watttime NORTH historical")
    found = average.history("A", start, start + 600.0)
    assert (mean(found, start, start + 600.0), found.model) == (300.0, "estimated by its source")
    assert average.basis == "average" and average.history("B", start, start + 1.0) is None


# -- the command ---------------------------------------------------------------


def test_the_command_settles_and_prints_both(ran, tmp_path, capsys):
    from datetime import UTC, datetime

    rows = ["point_time,A,B"]
    for number in range(14):
        at = datetime.fromtimestamp(ran.service.replay.start + 300.0 * number, UTC)
        rows.append(f"{at.isoformat()},60,60")
    file = tmp_path / "trace.csv"
    file.write_text("\n".join(rows) + "\n")
    options = SettleOptions(ran.home, file, "g/kWh")
    assert run_settle(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "settled for the first time" in lines[0] and "at decision" in lines[1]
    decided, settled = (float(word) for word in lines[2].split()[-2:])
    assert settled == pytest.approx(1.2 * decided, rel=1e-2)
    ran.tick(300.0)
    assert run_settle(options) == 0 and " 0 settled for the first time, 0 revised" in capsys.readouterr().out
    assert look(ran.home, None).problem == ""
    with contextlib.closing(lock(ran.home)), pytest.raises(Refused, match="only one process may write"):
        run_settle(options)


def test_a_run_that_names_no_source_of_its_past_is_told_what_to_give(ran, tmp_path):
    with pytest.raises(UsageError, match="names no trace"):
        run_settle(SettleOptions(ran.home))
    with pytest.raises(UsageError, match="--unit"):
        run_settle(SettleOptions(ran.home, tmp_path / "x.csv"))
    with pytest.raises(CurtailError, match="no store"):
        run_settle(SettleOptions(tmp_path / "nowhere"))
