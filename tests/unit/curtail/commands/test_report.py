"""`curtail report`: the page says what the ledger holds, loads nothing and escapes everything."""

from __future__ import annotations

import json
import re
import sqlite3
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from controller.ledger.recorder import Booking
from curtail import commands
from curtail.carbon import accounting
from curtail.carbon.accounting import Totals
from curtail.commands.report.collect.figures import below, held
from curtail.commands.report.render.page import MOST_ROUNDS, page
from curtail.commands.report.run import as_json, look, run_report
from curtail.errors import CurtailError, DiskError, NotFound, UsageError
from curtail.plotting.svg import MOST_POINTS, Frame, curve, joined, text, thin, ticks, time_ticks

STEP = 300.0


def parsed(html: str) -> ET.Element:
    """The page as XML; it fails where it is not well-formed."""
    return ET.fromstring(html.removeprefix("<!DOCTYPE html>\n"))


def work(world, moments: int = 6) -> None:
    """Two sites in two regions train, commit and pause for some readings."""
    for site, region in (("a", "A"), ("b", "B")):
        world.ready(site, f"job-{site}", region)
    for moment in range(moments):
        world.source.mci = {"A": 50.0 + moment, "B": 60.0 if moment % 3 else None}
        world.tick(STEP)
        for site in ("a", "b"):
            world.beat(site, f"job-{site}", "train")
        assignment = world.checkout("a", "job-a").assignment
        if assignment is not None:
            world.commit("a", "job-a", assignment, steps=2)
        world.tick(STEP / 2)
    world.source.mci = {"A": 400.0, "B": 500.0}
    world.tick(STEP)
    for site in ("a", "b"):
        world.beat(site, None, "paused")
    world.tick(STEP)


@pytest.fixture
def worked(world):
    work(world)
    return world


def ledger(world) -> list[accounting.Entry]:
    def rows(tx):
        still = [accounting.close(interval, seen) for interval, seen in tx.open_intervals()]
        return [*tx.entries(), *(entry for entry in still if entry is not None)]

    return world.store.call(rows)


# -- figures -----------------------------------------------------------------


def test_totals_are_those_of_the_accounts_open_intervals_included(worked):
    figures, totals = look(worked.home), accounting.add(Totals(), ledger(worked))
    assert totals.kg_attributed > 0 and totals.standing_kwh > 0 and totals.unknown_kwh > 0
    sums = figures.sums
    assert (sums.attributed_kwh, sums.standing_kwh) == (totals.attributed_kwh, totals.standing_kwh)
    assert (sums.kg_attributed, sums.kg_standing) == (totals.kg_attributed, totals.kg_standing)
    assert sums.kg_reserved == totals.kg_attributed + totals.kg_standing
    assert (sums.curtailed_pct, sums.unknown_kwh) == (totals.curtailed_pct, totals.unknown_kwh)
    assert sums.train_s == totals.train_seconds


def test_the_page_and_the_status_say_the_same(worked):
    status, figures = worked.status(), look(worked.home)
    assert figures.sums.kg_attributed == pytest.approx(status.energy.kg_attributed, rel=1e-9)
    assert figures.kg_always_on == pytest.approx(status.energy.kg_always_on, rel=1e-9)
    assert (figures.tokens, figures.version, figures.rounds_merged) == (status.tokens, status.version, status.rounds)


@pytest.mark.parametrize("parts", ["sites", "regions"])
def test_rows_add_up_to_the_totals(worked, parts):
    figures = look(worked.home)
    for name in ("attributed_kwh", "standing_kwh", "kg_attributed", "kg_reserved", "unknown_kwh", "train_s"):
        whole = sum(getattr(part.sums, name) for part in getattr(figures, parts))
        assert whole == pytest.approx(getattr(figures.sums, name), rel=1e-12), name
    phases = sum(kwh for site in figures.sites for kwh in site.kwh_by_phase.values())
    assert phases == pytest.approx(figures.sums.attributed_kwh + figures.sums.standing_kwh, rel=1e-12)


def test_curves_of_carbon_end_at_the_totals(worked):
    figures = look(worked.home)
    assert figures.kg_attributed[-1][1] == pytest.approx(figures.sums.kg_attributed, rel=1e-9)
    assert figures.kg_reserved[-1][1] == pytest.approx(figures.sums.kg_reserved, rel=1e-9)
    assert figures.kg_baseline[-1][1] == pytest.approx(figures.kg_always_on, rel=1e-9)
    for points in (figures.kg_attributed, figures.kg_reserved, figures.kg_baseline):
        assert list(points) == sorted(points)


def test_the_baseline_is_the_bookings(worked):
    def expected(tx):
        readings = {region: tx.readings(region) for region in worked.config.regions}
        sites = {site.site: site.region for site in tx.sites()}
        totals = accounting.add(Totals(), [])
        totals = replace(totals, train_seconds=look(worked.home).sums.train_s)
        return Booking(worked.config).always_on_kg(totals, tx.run().started, sites, readings)

    assert look(worked.home).kg_always_on == worked.store.call(expected) is not None


def test_a_version_has_the_loss_and_the_tokens_of_its_members(worked):
    figures = look(worked.home)
    assert len(figures.versions) == figures.version > 0
    assert {version.loss for version in figures.versions} == {3.0}
    assert worked.status().loss_last == pytest.approx(figures.versions[-1].loss_smoothed) == pytest.approx(3.0)
    assert figures.versions[-1].tokens == figures.tokens
    moments = [version.at for version in figures.versions]
    assert None not in moments and moments == sorted(moments)


def test_rounds_name_members_tokens_and_duration(worked):
    figures = look(worked.home)
    merged = [row for row in figures.rounds if row.version is not None]
    assert sum(row.tokens for row in merged) == figures.tokens
    assert all(row.members == ("a",) and row.duration_s is not None for row in merged)


def test_the_timeline_of_regimes_is_without_gaps_and_has_the_stores_seconds(worked):
    figures = look(worked.home)
    assert figures.regimes[0][0] == figures.started and figures.regimes[-1][1] == figures.now
    assert all(a[1] == b[0] for a, b in zip(figures.regimes, figures.regimes[1:], strict=False))
    for name, seconds in figures.regime_seconds.items():
        drawn = sum(stop - start for start, stop, regime in figures.regimes if regime == name)
        assert drawn == pytest.approx(seconds, abs=1.0)


def test_where_the_oldest_lines_of_the_log_are_gone_no_regime_is_invented(worked):
    def prune(tx):
        keep = len(tx.last_events(1 << 40)) - 4
        return tx.prune_events(keep, 1000), tx.last_events(1 << 40)

    gone, left = worked.store.call(prune)
    first = next(event.at for event in left if event.kind in ("regime", "controller"))
    figures = look(worked.home)
    assert gone == 4 and figures.regimes[0][0] == first
    parsed(page(figures, "1"))


def test_sites_trained_within_the_period(worked):
    figures = look(worked.home)
    for site in figures.sites:
        assert site.training
        assert all(figures.started <= start < stop <= figures.now for start, stop in site.training)
        assert sum(stop - start for start, stop in site.training) == pytest.approx(site.sums.train_s, abs=1.0)


def test_a_reading_holds_until_the_next_but_not_beyond_its_age():
    assert held([(0.0, 5.0), (10.0, 7.0)], 30.0, 0.0, 20.0) == [(0.0, 5.0), (10.0, 7.0)]
    assert held([(0.0, 5.0), (100.0, 7.0)], 30.0, 0.0, 110.0) == [(0.0, 5.0), (30.0, None), (100.0, 7.0)]
    assert held([(-20.0, 5.0)], 30.0, 0.0, 50.0) == [(0.0, 5.0), (10.0, None)]
    assert held([(-50.0, 5.0), (5.0, None)], 30.0, 0.0, 9.0) == [(5.0, None)]


def test_a_window_is_known_and_strictly_below_the_threshold():
    course = [(0.0, 99.0), (10.0, 100.0), (20.0, 50.0), (30.0, 60.0), (40.0, None)]
    assert below(course, 100.0, 50.0) == [(0.0, 10.0), (20.0, 40.0)]
    assert below([], 100.0, 50.0) == []


def test_many_readings_are_drawn_by_their_extremes_and_counted_in_full(worked):
    def add(tx):
        start = tx.run().started
        for number in range(5000):
            tx.add_reading(
                "A", start + 0.1 * number + 0.05, 777.0 if number == 2345 else 300.0 + number % 7, "test", ""
            )

    worked.store.call(add)
    figures = look(worked.home)
    region = figures.regions[0]
    assert region.thinned and len(region.curve) <= MOST_POINTS < 5000 < region.readings
    assert 777.0 == region.highest == max(mci for _, mci in region.curve if mci is not None)
    assert not figures.regions[1].thinned
    parsed(page(figures, "1"))


# -- the page ----------------------------------------------------------------


def test_the_page_is_well_formed_and_has_its_pictures(worked, tmp_path):
    run_report(worked.home, tmp_path / "r.html", tmp_path / "r.json")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    root = parsed(html)
    pictures = [element.attrib["aria-label"] for element in root.iter("svg")]
    assert pictures == [
        "cumulative kgCO2", "kgCO2 of this run and of counterfactuals", "MCI of region A",
        "MCI of region B", "loss over time", "regime over time",
        "energy by site and phase", "tokens of each merged round", "duration of each merged round",
    ]  # fmt: skip
    headings = [element.text for element in root.iter("h2")]
    assert headings[-1] == "How to read these figures"
    figures = look(worked.home)
    assert f"{figures.sums.kg_attributed:,.4f}" in html and f"{figures.tokens:,}" in html
    assert not re.findall(r"\b(nan|inf|None)\b", "".join(root.itertext()))


def test_the_page_loads_and_runs_nothing(worked):
    tags: set[str] = set()
    attributes: set[str] = set()

    class Seen(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.add(tag)
            attributes.update(name for name, _ in attrs)

    html = page(look(worked.home), "1")
    Seen().feed(html)
    assert {"svg", "table", "path"} <= tags
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image", "use", "base"}
    assert not [name for name in attributes if name in ("src", "href", "srcset", "style") or name.startswith("on")]
    assert not re.search(r"https?:|//|url\(|@import", html.partition("</style>")[0].partition("<style>")[2])
    assert "http:" not in html and "https:" not in html
    assert "default-src 'none'" in html


def test_names_from_outside_are_escaped(worked):
    evil = '</svg><script>alert("&\x00\x1b")</script>'
    figures = look(worked.home)
    figures = replace(
        figures,
        name=evil,
        run=evil,
        sites=tuple(replace(site, site=evil) for site in figures.sites),
        regions=tuple(replace(region, region=evil) for region in figures.regions),
        rounds=tuple(replace(row, members=(evil,), missing=(evil,), kind=evil) for row in figures.rounds),
        decisions=((figures.started, evil, evil),),
        flagged_kwh={evil: 1.0},
    )
    html = page(figures, evil)
    assert "<script" not in html and "\x00" not in html and "\x1b" not in html
    assert not list(parsed(html).iter("script"))


def test_the_json_has_the_figures_of_the_page(worked, tmp_path):
    run_report(worked.home, tmp_path / "r.html", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    figures = look(worked.home)
    assert found == json.loads(as_json(figures))
    assert found["sums"]["kg_attributed"] == figures.sums.kg_attributed
    assert [row["round"] for row in found["rounds"]] == [row.round for row in figures.rounds]


def test_the_command_writes_beside_a_running_controller(worked, tmp_path):
    out, figures = tmp_path / "r.html", tmp_path / "r.json"
    assert commands.invoke(["report", str(worked.home), "--out", str(out), "--json", str(figures)]) == 0
    assert parsed(out.read_text(encoding="utf-8")).tag == "html" and json.loads(figures.read_text())["name"] == "test"
    worked.tick()
    worked.check()


def test_versions_without_a_line_in_the_log_are_no_error(worked):
    figures = look(worked.home)
    lost = replace(figures, versions=tuple(replace(version, at=None) for version in figures.versions))
    assert "No merged version has both a loss and a time in the log" in page(lost, "1")


def test_many_rounds_are_all_in_the_json_and_the_latest_in_the_table(worked):
    figures = look(worked.home)
    row = next(row for row in figures.rounds if row.version is not None)
    many = replace(figures, rounds=tuple(replace(row, round=n) for n in range(1, 2 * MOST_ROUNDS)))
    html = page(many, "1")
    assert len(json.loads(as_json(many))["rounds"]) == 2 * MOST_ROUNDS - 1
    assert f"{MOST_ROUNDS - 1} earlier ones" in html
    parsed(html)


# -- little, nothing, damage --------------------------------------------------


def test_a_run_that_did_nothing_has_a_report_that_says_so(make_world, tmp_path):
    world = make_world()
    run_report(world.home, tmp_path / "r.html", tmp_path / "r.json")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    words = "".join(parsed(html).itertext())
    for sentence in ("Nothing has been booked yet", "No version has been merged", "No round has been opened",
                     "No site has joined", "no reading arrived"):  # fmt: skip
        assert sentence in words
    assert look(world.home).kg_always_on is None


def test_a_run_without_readings_books_energy_without_carbon(make_world, tmp_path):
    world = make_world()
    world.join("a")
    world.tick()
    world.beat("a")
    world.tick(STEP)
    figures = look(world.home)
    assert figures.sums.unknown_kwh == figures.sums.standing_kwh > 0 and figures.sums.curtailed_pct is None
    assert "while the MCI was unknown" in page(figures, "1")
    parsed(page(figures, "1"))


def test_nothing_is_written_to_the_store(worked, tmp_path):
    before = {path.name: path.read_bytes() for path in worked.home.glob("state.db*") if path.name != "state.db-shm"}
    run_report(worked.home, tmp_path / "r.html", None)
    assert all((worked.home / name).read_bytes() == data for name, data in before.items())


def test_a_folder_without_a_run_is_refused_and_nothing_is_written(tmp_path):
    out = tmp_path / "r.html"
    with pytest.raises(NotFound, match="there is no store"):
        run_report(tmp_path / "nowhere", out, None)
    (tmp_path / "state.db").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(CurtailError, match="is damaged"):
        run_report(tmp_path, out, None)
    assert not out.exists()


def test_a_store_with_a_damaged_configuration_is_refused(worked, tmp_path):
    connection = sqlite3.connect(worked.home / "state.db")
    connection.executescript("UPDATE run SET config = '{'")
    connection.close()
    with pytest.raises(CurtailError, match="configuration"):
        run_report(worked.home, tmp_path / "r.html", None)
    assert not (tmp_path / "r.html").exists()


def test_output_that_would_do_harm_or_cannot_be_written_is_refused(worked, tmp_path):
    with pytest.raises(UsageError, match="same file"):
        run_report(worked.home, tmp_path / "r", tmp_path / "r")
    with pytest.raises(UsageError, match=r"state\.db"):
        run_report(worked.home, worked.home / "state.db", None)
    with pytest.raises(DiskError, match="does not exist"):
        run_report(worked.home, tmp_path / "no" / "r.html", None)


# -- plots -------------------------------------------------------------------


def test_thinning_keeps_ends_extremes_and_gaps():
    points = [(float(n), float(n % 100)) for n in range(100_000)]
    points[54_321] = (54_321.0, 9999.0)
    points[60_007] = (60_007.0, -5.0)
    points[70_001] = (70_001.0, None)
    found = thin(points)
    assert len(found) <= MOST_POINTS
    assert found[0] == points[0] and found[-1] == points[-1]
    assert {points[54_321], points[60_007], points[70_001]} <= set(found)
    assert found == sorted(found, key=lambda point: point[0])
    assert thin(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_spans_nearer_than_the_gap_become_one():
    assert joined([(0.0, 1.0), (1.5, 2.0), (5.0, 6.0)], 0.5) == [(0.0, 2.0), (5.0, 6.0)]


def test_a_held_curve_goes_across_before_it_goes_up_and_stops_where_nothing_is_known():
    frame = Frame(0.0, 10.0, 0.0, 10.0, left=0.0, right=0.0, top=0.0, height=10.0, width=10.0)
    assert curve(frame, [(0.0, 1.0), (4.0, 8.0), (6.0, None)], "x", until=10.0) == (
        '<path d="M0.0 9.0H4.0V2.0H6.0" class="curve x"/>'
    )
    assert curve(frame, [(0.0, 1.0), (4.0, 8.0)], "x") == '<path d="M0.0 9.0L4.0 2.0" class="curve x"/>'
    assert curve(frame, [(0.0, None)], "x", until=10.0) == ""


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.0), (-50.0, 950.0), (2.013, 2.017), (0.0, 3e6)])
def test_ticks_are_few_and_enclose_the_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9 and 2 <= len(found) <= 8
    assert found == sorted(found)


@pytest.mark.parametrize("seconds", [0.5, 60.0, 3600.0, 86400.0, 366 * 86400.0, 20 * 366 * 86400.0])
def test_moments_are_few_and_within_the_period(seconds):
    found = time_ticks(1_767_225_600.0, 1_767_225_600.0 + seconds)
    assert 1 <= len(found) <= 21
    assert all(1_767_225_600.0 <= at <= 1_767_225_600.0 + seconds for at, _ in found)


def test_text_is_safe_in_html_and_xml():
    assert text("<a b=\"c\" d='e'>&\x07") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;\N{REPLACEMENT CHARACTER}"
