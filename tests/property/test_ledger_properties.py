"""The energy ledger against an independent integration, over many changes of phase, power, reading and process."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.fleet.live import LiveMachine, LiveSite
from controller.ledger.recorder import EnergyLedger
from controller.scheduling.overrides import Overrides
from curtail.carbon.accounting import PHASES, Totals, add
from curtail.carbon.hash_chain import ChainRecord, ChainResult, follow, following, genesis
from curtail.config import parse_config
from curtail.errors import NotFound
from curtail.grid.trace import Trace, load_trace
from curtail.policy.rules import Verdict
from curtail.wire import OverrideRequest, Power

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "mci_2026-01-11_18h.csv"
CONFIG = parse_config(
    {
        "run": {"name": "test"},
        "model": {"preset": "d2-test"},
        "data": {"path": "nowhere"},
        "training": {"token_budget": 1000, "batch_samples": 4},
        "regions": {
            "A": {"power_train": "2024 W", "power_idle": "468 W", "power_paused": "90 W", "pue": 1.25},
            "B": {"power_train": "700 W", "power_idle": "200 W"},
        },
    }
)
PHASE = st.sampled_from(("paused", "start", "train", "sync", "drain"))


@dataclass
class Memory:
    """What booking asks of a transaction, without a file."""

    rows: list = field(default_factory=list)
    after_rollback: list = field(default_factory=list)
    open: dict = field(default_factory=dict)
    clock: float = 0.0  # up to which all sites are booked: the run's, which the service sets in the same transaction

    def entries_after(self, number):
        return iter(list(enumerate(self.rows, 1))[number:])

    def add_entries(self, entries):
        self.rows += entries

    def put_open(self, interval, seen, marks=None):
        self.open[interval.site] = (interval, seen, dict(marks or {}))

    def drop_open(self, site):
        self.open.pop(site, None)

    def open_with_marks(self):
        return [(interval, max(seen, self.clock), marks) for interval, seen, marks in self.open.values()]


def site(name, region):
    return LiveSite(name, region, 1, {"m": LiveMachine("m")})


def verdict(reading):
    known = reading.mci is not None and reading.mci < 100.0
    return Verdict(reading.region, known, reading.valid_until, "test", known)


def brute_force(trace, region, spans):
    """kWh, kg, curtailed kWh and unknown kWh of spans (from, to, W at the grid), second by second of no grid at all.

    Each span is cut at the stamps of the trace by plain comparison; sums are exact to the last digit.
    """
    kwh, kg, inside, unknown = [], [], [], []
    for start, stop, watts in spans:
        cuts = sorted({start, stop, *(s for s in (*trace.stamps, trace.end) if start < s < stop)})
        for a, b in pairwise(cuts):
            held = [v for s, v in zip(trace.stamps, trace.values[region], strict=True) if s <= a]
            mci = held[-1] if held and a < trace.end else None
            energy = watts * (b - a) / 3.6e6
            kwh.append(energy)
            if mci is None:
                unknown.append(energy)
                continue
            kg.append(energy * max(0.0, mci) / 1000.0)
            inside.append(energy if mci < 100.0 else 0.0)
    return tuple(math.fsum(part) for part in (kwh, kg, inside, unknown))


def book_through(trace, region, events, restarts=()):
    """Book a site through `events` (moment, phase), looking at every stamp; the rows, and the spans that were lived."""
    tx, energy_ledger, live = Memory(), EnergyLedger(CONFIG), site("s", region)
    moments = sorted({*(at for at, _ in events), *trace.stamps, trace.end, *restarts})
    moments = [at for at in moments if at >= events[0][0]]
    phases, spans, last = dict(events), [], events[0][0]
    for now in moments:
        if now > last:
            spans.append((last, now, CONFIG.watts(region, live.phase) * CONFIG.regions[region].pue, live.phase))
        live.phase, last = phases.get(now, live.phase), now
        reading = trace.reading(region, region, now)
        energy_ledger.book(tx, live, now, reading, verdict(reading), 1.0)
        tx.clock = now
        if now in restarts:  # killed and back at once, as at a replay
            energy_ledger = EnergyLedger(CONFIG)
            energy_ledger.restore(tx, now)
            energy_ledger.book(tx, live, now, reading, verdict(reading), 1.0)
    energy_ledger.finish(tx, "s", last)
    return tx.rows, spans, energy_ledger


@st.composite
def traces(draw):
    period = draw(st.sampled_from((60.0, 300.0)))
    value = st.one_of(st.none(), st.just(0.0), st.floats(-50.0, 900.0))
    values = draw(st.lists(value, min_size=3, max_size=25))
    stamps = tuple(1.7e9 + period * index for index in range(len(values)))
    return Trace("random", stamps, {"A": tuple(values)}, period)


@given(traces(), st.lists(st.tuples(st.floats(0.0, 1.0), PHASE), min_size=1, max_size=30))
def test_sums_agree_with_a_direct_integration_of_the_trace(trace, changes):
    span = trace.end - trace.start
    events = [(trace.start, "paused"), *sorted({trace.start + span * share: phase for share, phase in changes}.items())]
    rows, spans, energy_ledger = book_through(trace, "A", sorted(dict(events).items()))
    agree(trace, "A", rows, spans, energy_ledger)


def agree(trace, region, rows, spans, energy_ledger):
    plain = [(a, b, w) for a, b, w, _ in spans]
    kwh, kg, _, unknown = brute_force(trace, region, plain)
    totals = add(Totals(), rows)
    assert totals == energy_ledger.totals
    assert totals.attributed_kwh + totals.standing_kwh == pytest.approx(kwh, rel=1e-9, abs=1e-15)
    assert totals.kg_attributed + totals.kg_standing == pytest.approx(kg, rel=1e-9, abs=1e-15)
    assert totals.unknown_kwh == pytest.approx(unknown, rel=1e-9, abs=1e-15)
    busy = [(a, b, w) for a, b, w, phase in spans if phase != "paused"]
    kwh, kg, inside, _ = brute_force(trace, region, busy)
    assert totals.attributed_kwh == pytest.approx(kwh, rel=1e-9, abs=1e-15)
    assert totals.kg_attributed == pytest.approx(kg, rel=1e-9, abs=1e-15)
    assert totals.curtailed_kwh == pytest.approx(inside, rel=1e-9, abs=1e-15)
    for before, after in pairwise(rows):
        assert after.t0 == before.t1, "rows tile the time"


@pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded trace is not here")
@pytest.mark.parametrize("column", ["CAISO_NORTH", "SPP_TX", "NEM_SA"])
def test_sums_agree_with_a_direct_integration_of_the_recorded_trace(column):
    import random

    recorded, rng = load_trace(RECORDED, "g/kWh", [column]), random.Random(column)
    trace = Trace(recorded.name, recorded.stamps, {"A": recorded.values[column]}, recorded.period)
    moments = [trace.start] + [trace.start + rng.random() * (trace.end - trace.start) for _ in range(2000)]
    events = [(at, rng.choice(("paused", "start", "train", "sync", "drain"))) for at in sorted(moments)]
    restarts = [at for at, _ in events if rng.random() < 0.02]
    rows, spans, energy_ledger = book_through(trace, "A", events, restarts)
    assert len(rows) > 1500
    agree(trace, "A", rows, spans, energy_ledger)


STEP = st.tuples(
    st.floats(0.1, 20.0),  # seconds until the next report
    st.floats(0.0, 3000.0),  # W meanwhile
    st.sampled_from(("report", "lost", "repeated", "phase", "reading", "agent restarts", "controller restarts")),
)


@settings(max_examples=200)
@given(st.lists(STEP, min_size=5, max_size=40))
def test_no_energy_is_negative_or_counted_twice_whatever_restarts(steps):
    """A machine's true energy is known; the ledger may differ from it only where samples were missing, by the model."""
    tx, energy_ledger, live = Memory(), EnergyLedger(CONFIG), site("s", "B")
    trace = Trace("t", (0.0, 1e6), {"B": (50.0, 60.0)}, 1e6)
    machine, now = live.machines["m"], 1000.0
    seconds = joules = true = 0.0
    meter, region_reading = 0, trace.reading("B", "B", now)
    machine.power = Power("0", "rapl", 0.0, 0.0, None, 0.0)
    energy_ledger.book(tx, live, now, region_reading, verdict(region_reading), 1.0)
    blind = 0.0  # s of which no samples reach the ledger: before the first report of each life
    since, fresh = 0.0, True
    for wait, watts, kind in steps:
        now += wait
        seconds, joules, true = seconds + wait, joules + watts * wait, true + watts * wait
        since += wait
        if kind == "agent restarts":
            meter, seconds, joules = meter + 1, 0.0, 0.0
        if kind == "controller restarts":
            energy_ledger = EnergyLedger(CONFIG)
            energy_ledger.restore(tx, now)
        if kind != "lost":
            machine.power = Power(str(meter), "rapl", seconds, joules, None, joules)
            if kind in ("agent restarts", "controller restarts") or fresh:
                blind, fresh = blind + since, kind in ("agent restarts", "controller restarts")
            since = 0.0
        if kind == "phase":
            live.phase = "train" if live.phase == "paused" else "paused"
        reading = trace.reading("B", "B", now)
        energy_ledger.book(tx, live, now, reading, verdict(reading), 1.0)
        if kind == "repeated":
            energy_ledger.book(tx, live, now, reading, verdict(reading), 1.0)
    blind += since
    total, _ = energy_ledger.present(now)
    energy_ledger.finish(tx, "s", now)
    assert all(row.kwh >= 0 and row.t1 > row.t0 for row in tx.rows)
    unknown = [row for row in tx.rows if row.kg is None]
    assert all("estimated" in row.detail.basis.flags for row in unknown), "only while there was no controller"
    assert all(row.kg >= 0 for row in tx.rows if row.kg is not None)
    assert all(0.0 <= row.detail.coverage <= 1.0 for row in tx.rows)
    assert tx.rows[0].t0 == 1000.0 and tx.rows[-1].t1 == now
    assert all(after.t0 == before.t1 for before, after in pairwise(tx.rows))
    drawn = math.fsum(row.detail.machine_kwh for row in tx.rows) * 3.6e6
    assert drawn >= -1e-9
    assert total.attributed_kwh + total.standing_kwh == pytest.approx(drawn / 3.6e6, rel=1e-6, abs=1e-9)
    most = max(700.0, *(watts for _, watts, _ in steps))
    # samples may lag by the allowed jitter, once for each life of a meter
    slack = most * (blind + 6.0 * (1 + meter))
    assert abs(drawn - true) <= slack + 1e-6


@given(st.lists(st.tuples(st.floats(0.5, 5.0), st.floats(0.0, 3000.0)), min_size=3, max_size=50))
def test_undisturbed_counters_are_booked_to_the_joule(steps):
    tx, energy_ledger, live = Memory(), EnergyLedger(CONFIG), site("s", "B")
    reading = Trace("t", (0.0, 1e6), {"B": (50.0, 60.0)}, 1e6).reading("B", "B", 10.0)
    machine, now, seconds, joules, first = live.machines["m"], 1000.0, 0.0, 0.0, None
    live.phase = "train"
    for wait, watts in [(0.0, 0.0), *steps]:
        now, seconds, joules = now + wait, seconds + wait, joules + watts * wait
        machine.power = Power("0", "nvml-total-energy+rapl", seconds, joules, 0.6 * joules, 0.4 * joules)
        first = (now, joules) if first is None or first[0] == 1000.0 else first
        energy_ledger.book(tx, live, now, reading, verdict(reading), 1.0)
    energy_ledger.finish(tx, "s", now)
    assert len(tx.rows) <= 2, "by the model until the first samples, then one row whatever the power does"
    measured = [row for row in tx.rows if row.method == "nvml-total-energy+rapl"]
    drawn = sum(row.detail.machine_kwh for row in measured) * 3.6e6
    # what is booked too much when power falls at once is carried on, and gone at the end of a site
    assert drawn >= joules - first[1] - 1e-6 * joules
    if all(row.kwh > 0 for row in measured):
        assert drawn == pytest.approx(joules - first[1], rel=1e-9, abs=1e-6)
    for row in measured:
        assert row.detail.coverage == pytest.approx(1.0) and row.watts * (row.t1 - row.t0) <= 3000.0 * (now - 1000.0)
        assert row.detail.gpu_kwh + row.detail.host_kwh == pytest.approx(row.detail.machine_kwh, abs=1e-9)


RECORD = st.tuples(
    st.sampled_from(("energy", "reading", "settlement", "order")),
    st.dictionaries(st.sampled_from(("site", "reason", "kwh", "t")), st.one_of(st.text(max_size=5), st.floats(0, 9))),
)


def chained(records):
    links, before, counts = [], genesis("run"), {}
    for seq, (kind, record) in enumerate(records, start=1):
        counts[kind] = counts.get(kind, 0) + 1
        before = following(before, seq, kind, record)
        links.append(ChainRecord(seq, kind, counts[kind], record, before))
    return links


@given(st.lists(RECORD, min_size=2, max_size=12), st.data())
def test_any_change_of_a_chain_but_a_cut_at_its_end_is_found(records, data):
    links = chained(records)
    head = links[-1].hash
    assert follow("run", links, head) == ChainResult(len(links), head, "", "yes")
    place = data.draw(st.integers(0, len(links) - 1))
    link = links[place]
    changes = {
        "value": [replace(link, record={**link.record, "site": str(link.record.get("site", "")) + "x"})],
        "hash": [replace(link, hash=link.hash[:-1] + ("0" if link.hash[-1] != "0" else "1"))],
        "kind": [replace(link, kind="reading" if link.kind == "energy" else "energy")],
        "gone": [replace(link, record=None)],
        "twice": [link, link],
        "removed": [],
    }
    how = data.draw(st.sampled_from(sorted(changes)))
    changed = [*links[:place], *changes[how], *links[place + 1 :]]
    finding = follow("run", changed, head)
    if how == "removed" and place == len(links) - 1:
        assert not finding.problem and finding.passed == "no", "that takes a head that was noted"
    else:
        assert finding.problem and finding.records <= place + 1
    other = data.draw(st.integers(0, len(links) - 1))
    swapped = list(links)
    swapped[place], swapped[other] = swapped[other], swapped[place]
    assert bool(follow("run", swapped).problem) == (place != other)
    assert follow("another run", links).problem


class Ordered:
    """What orders ask of a transaction, without a file."""

    def __init__(self):
        self.rows, self.events, self.after_rollback = [], [], []

    def add_order(self, row):
        self.rows.append(row)
        return len(self.rows)

    def open_orders(self):
        ended = {row.of_order for row in self.rows}
        return [(n, row) for n, row in enumerate(self.rows, 1) if row.of_order is None and n not in ended]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("train", "pause", "clear", "wait", "restart")),
            st.sampled_from("AB"),
            st.floats(1.0, 500.0),
        ),
        max_size=40,
    )
)
def test_what_was_in_force_at_any_time_follows_from_the_records_of_orders_alone(steps):
    tx, now, held = Ordered(), 1000.0, []
    orders = Overrides("AB", lambda *event: None)
    for what, region, seconds in steps:
        if what == "restart":
            orders = Overrides("AB", lambda *event: None)
            orders.restore(tx)
        elif what == "wait":
            now += seconds
            orders.expire(tx, now, 0.0)
        else:
            with contextlib.suppress(NotFound):  # there was nothing to take back
                orders.place(tx, OverrideRequest(region, what, seconds, "kim", "why"), now, 0.0)
        held.append({name: order.train for name in "AB" if (order := orders.of(name, now)) is not None})
        ends = [row.of_order for row in tx.rows if row.of_order is not None]
        assert len(ends) == len(set(ends)), "an order ends once"
        ended = {row.of_order: row.at for row in tx.rows if row.of_order is not None}
        told = {
            row.region: row.act == "train"
            for number, row in enumerate(tx.rows, 1)
            if row.of_order is None and row.at <= now < ended.get(number, row.until)
        }
        assert told == held[-1]


def test_the_phases_of_the_ledger_are_all_booked():
    assert set(PHASES) >= {"paused", "start", "train", "sync", "hold", "drain"}
