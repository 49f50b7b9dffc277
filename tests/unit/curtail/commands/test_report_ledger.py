"""`curtail report`: its figures are those of an independent calculation over the store's rows."""

from __future__ import annotations

import json
import sqlite3
import struct
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest

from controller.store.rows import SettledRow
from curtail import commands
from curtail.carbon.accounting import Basis, Detail, Entry
from curtail.commands.report import run as reports
from curtail.commands.report.collect.ledger import changes, flagged, methods
from curtail.commands.report.render.page import page
from curtail.commands.report.render.tables import MOST_CHANGES
from curtail.commands.report.run import as_json, look, run_report
from curtail.errors import CurtailError, DiskError

STEP = 300.0
ATTRIBUTED = {"start", "train", "sync", "hold", "drain"}


@pytest.fixture
def worked(world):
    """Two sites start, train, commit and pause; one reading is unknown, one exactly 0."""
    for site, region in (("a", "A"), ("b", "B")):
        world.ready(site, f"job-{site}", region)
    world.tick(STEP)
    for moment, mci in enumerate((50.0, 0.0, 70.0, 65.0)):
        world.source.mci = {"A": mci, "B": None if moment == 3 else 60.0 + moment}
        world.tick(STEP)
        for site in ("a", "b"):
            world.beat(site, f"job-{site}", "train")
        assignment = world.checkout("a", "job-a").assignment
        if assignment is not None:
            world.commit("a", "job-a", assignment, steps=2)
    world.source.mci = {"A": 400.0, "B": 500.0}
    world.tick(STEP)
    for site in ("a", "b"):
        world.beat(site, None, "paused")
    world.tick(STEP)
    for site in ("a", "b"):  # what is open is closed, so that every row is in the table
        world.store.call(lambda tx, site=site: world.service.booking.finish(tx, site, world.service.replay.now()))
    return world


def rows_of(world) -> list[dict]:
    """The ledger's rows, by SQL."""
    connection = sqlite3.connect(world.home / "state.db")
    connection.row_factory = sqlite3.Row
    found = [dict(row) for row in connection.execute("SELECT * FROM energy ORDER BY id")]
    connection.close()
    return found


def figures_of(world) -> dict:
    return json.loads(as_json(look(world.home)))


# -- sums ----------------------------------------------------------------------


def test_the_boundaries_are_sums_of_the_rows_and_the_run_files_factors(worked):
    found, rows = figures_of(worked)["carbon"], rows_of(worked)
    job = [row for row in rows if row["phase"] in ATTRIBUTED]
    kwh = sum(row["watts"] * (row["t1"] - row["t0"]) / 3.6e6 for row in job)
    grams = sum(row["watts"] * (row["t1"] - row["t0"]) / 3.6e6 * (row["mci"] or 0.0) for row in job)
    everything = sum(row["watts"] * (row["t1"] - row["t0"]) / 3.6e6 * (row["mci"] or 0.0) for row in rows)
    hours = sum(row["t1"] - row["t0"] for row in rows) / 3600
    figures = figures_of(worked)
    running_h = (figures["now"] - figures["started"]) / 3600
    assert kwh > 0 and everything > grams > 0
    assert found["boundaries"]["attributed_kwh"] == pytest.approx(kwh, rel=1e-9)
    assert found["boundaries"]["attributed_kg"] == pytest.approx(grams / 1000, rel=1e-9)
    assert found["boundaries"]["reserved_kg"] == pytest.approx(everything / 1000, rel=1e-9)
    sent = sum(row["network_bytes"] or 0 for row in rows)
    full = everything / 1000 + hours * 29 / 1000 + (0.020 * running_h + sent / 1e9 * 0.06) * 480 / 1000
    assert found["full_kg"] == pytest.approx(full, rel=1e-9)


def test_the_carbon_is_that_of_the_ledgers_totals(worked, capsys):
    assert commands.invoke(["ledger", "totals", str(worked.home), "--json"]) == 0
    totals, carbon = json.loads(capsys.readouterr().out), figures_of(worked)["carbon"]
    assert carbon["boundaries"] == totals["at_decision"]["boundaries"]
    assert carbon["kg_per_1e9_tokens"]["full"] == totals["at_decision"]["sci_kg_per_1e9_tokens"]
    assert carbon["counterfactuals"] == totals["counterfactuals"]
    assert carbon["sensitivity"] == totals["sensitivity"]


def test_the_same_training_on_one_site_at_once_is_an_integral_over_its_readings(worked):
    figures, rows = figures_of(worked), rows_of(worked)
    seconds = sum(row["t1"] - row["t0"] for row in rows if row["phase"] == "train")
    connection = sqlite3.connect(worked.home / "state.db")
    query = "SELECT point_time, mci FROM readings WHERE region = 'A' AND mci IS NOT NULL ORDER BY point_time"
    readings = connection.execute(query).fetchall()
    connection.close()
    grams = 0.0
    for moment in range(round(seconds)):  # second by second
        at = figures["started"] + moment + 0.5
        held = [mci for point, mci in readings if point <= at] or [readings[0][1]]
        grams += 2000.0 / 3.6e6 * held[-1]
    (alone,) = [one for one in figures["carbon"]["counterfactuals"]["alone"] if one["site"] == "a"]
    assert alone["hours"] == pytest.approx(seconds / 3600, rel=1e-3)
    assert alone["kg"] == pytest.approx(grams / 1000, rel=5e-3)
    words = "".join(ET.fromstring(page(look(worked.home), "1").partition("\n")[2]).itertext())
    assert "a alone, without waiting" in words and "Efficiency: the lower bound is" in words


def test_carbon_per_tokens_is_that_of_the_merged_tokens(worked):
    figures = figures_of(worked)
    carbon, tokens = figures["carbon"], figures["tokens"]
    assert tokens > 0
    assert carbon["kg_per_1e9_tokens"] == pytest.approx(
        {
            "attributed": carbon["boundaries"]["attributed_kg"] / tokens * 1e9,
            "reserved": carbon["boundaries"]["reserved_kg"] / tokens * 1e9,
            "full": carbon["full_kg"] / tokens * 1e9,
        }
    )


def test_shares_inside_windows_with_and_without_standing_by(worked):
    figures, rows = figures_of(worked), rows_of(worked)

    def share(chosen: list[dict]) -> float:
        return 100 * sum(row["kwh"] for row in chosen if row["curtailed"]) / sum(row["kwh"] for row in chosen)

    assert figures["curtailed_pct_with_standing"] == pytest.approx(share(rows))
    assert figures["sums"]["curtailed_pct"] == pytest.approx(share([r for r in rows if r["phase"] in ATTRIBUTED]))
    assert figures["curtailed_pct_with_standing"] < figures["sums"]["curtailed_pct"]
    for part, key in (("sites", "site"), ("regions", "region")):
        for one in figures[part]:
            own = [row for row in rows if row[key] == one[key]]
            assert one["curtailed_pct_with_standing"] == pytest.approx(share(own)), one[key]


def test_every_state_of_every_site_is_a_sum_of_its_rows(worked):
    rows, states = rows_of(worked), figures_of(worked)["states"]
    assert {(one["site"], one["state"]) for one in states} == {(row["site"], row["phase"]) for row in rows}
    for one in states:
        own = [row for row in rows if (row["site"], row["phase"]) == (one["site"], one["state"])]
        assert one["kwh"] == pytest.approx(sum(row["kwh"] for row in own))
        assert one["kg"] == pytest.approx(sum(row["kg"] or 0.0 for row in own))
        assert one["seconds"] == pytest.approx(sum(row["t1"] - row["t0"] for row in own))
        assert one["unknown_kwh"] == pytest.approx(sum(row["kwh"] for row in own if row["kg"] is None))
    assert any(one["unknown_kwh"] > 0 for one in states)


def test_the_sensitivity_is_of_the_same_rows(worked):
    found, rows = figures_of(worked)["carbon"]["sensitivity"], rows_of(worked)
    step = sum(row["kg"] or 0.0 for row in rows)
    zero = sum(row["kwh"] for row in rows if row["mci"] == 0.0)
    assert found["step_kg"] == pytest.approx(step) and zero > 0
    assert (found["plus_20_kg"], found["minus_20_kg"]) == pytest.approx((1.2 * step, 0.8 * step))
    assert found["zeros_at_50_kg"] == pytest.approx(step + zero * 50 / 1000)
    assert found["linear_kg"] != pytest.approx(step, rel=1e-6)


def test_methods_say_how_much_was_covered_by_samples(worked):
    rows = rows_of(worked)
    (found,) = figures_of(worked)["methods"]
    assert found["method"] == rows[0]["method"] and found["kwh"] == pytest.approx(sum(row["kwh"] for row in rows))
    assert found["coverage_pct"] == 0.0 and found["gpu_kwh"] is None


def row(site: str, phase: str, t0: float, t1: float, **changes) -> Entry:
    basis = Basis(400.0, "source", t0 - 5, 100.0, ("override",), f"because of {phase}")
    detail = Detail(1.0, 0.75, None, 0.5, basis=basis)
    entry = Entry(site, "A", phase, t0, t1, 1000.0, "nvml-total-energy", 1.0, 1.0, 1.0, 400.0, 0.4, False, detail)
    return replace(entry, **changes)


def test_measured_energy_is_told_apart_by_method_and_flags_are_summed():
    measured = [row("a", "train", 0.0, 300.0), row("a", "train", 300.0, 400.0, method="rapl")]
    assert flagged(measured) == {"override": 2.0}
    assert [(one.method, one.coverage_pct, one.gpu_kwh, one.host_kwh) for one in methods(measured)] == [
        ("nvml-total-energy", 50.0, 0.75, None),
        ("rapl", 50.0, 0.75, None),
    ]


# -- changes of state --------------------------------------------------------------


def test_every_change_of_state_has_its_reason_and_the_reading_behind_it(worked):
    figures, rows = figures_of(worked), rows_of(worked)
    for site in ("a", "b"):
        own = [row for row in rows if row["site"] == site]
        firsts = [own[0], *(b for a, b in pairwise(own) if a["phase"] != b["phase"])]
        found = [one for one in figures["changes"] if one["site"] == site]
        assert [(one["at"], one["after"], one["mci"]) for one in found] == [
            (row["t0"], row["phase"], row["mci"]) for row in firsts
        ]
        assert all(one["reason"] and one["source"] == "test" and one["threshold"] == 100.0 for one in found)
    assert [one["at"] for one in figures["changes"]] == sorted(one["at"] for one in figures["changes"])


def test_a_row_that_goes_on_is_no_change_and_a_gap_is_one():
    found = changes(
        [row("a", "train", 0, 5), row("a", "train", 5, 9), row("a", "drain", 9, 10), row("a", "drain", 20, 30)]
    )
    assert [(one.at, one.before, one.after) for one in found] == [
        (0, "", "train"),
        (9, "train", "drain"),
        (20, "", "drain"),
    ]
    assert found[1].reason == "because of drain" and found[1].point_time == 4 and found[1].flags == ("override",)


def test_the_page_shows_the_latest_changes_and_the_json_all(worked):
    figures = look(worked.home)
    many = replace(figures, changes=tuple(replace(figures.changes[0], at=float(n)) for n in range(MOST_CHANGES + 7)))
    assert "7 earlier ones are in the JSON" in page(many, "1")
    assert len(json.loads(as_json(many))["changes"]) == MOST_CHANGES + 7


# -- settlements and the chain ------------------------------------------------------


def test_without_a_settlement_the_page_says_so(worked):
    assert figures_of(worked)["carbon"]["settled"] == []
    assert "No row has been settled yet" in page(look(worked.home), "1")


def test_settled_carbon_stands_beside_that_of_the_decision_for_the_same_rows(worked):
    rows = rows_of(worked)
    chosen = [row for row in rows if row["site"] == "a"]

    def settle(tx):
        for row in chosen:
            tx.add_settled(SettledRow(row["id"], "marginal", 1, 80.0, row["kwh"] * 0.080, "later", "2026-01", 1e6))
        first = chosen[0]
        tx.add_settled(SettledRow(first["id"], "marginal", 2, 90.0, first["kwh"] * 0.090, "later", "2026-02", 2e6))
        tx.add_settled(SettledRow(first["id"], "average", 1, 200.0, first["kwh"] * 0.2, "averages", "", 2e6))

    worked.store.call(settle)
    marginal, average = figures_of(worked)["carbon"]["settled"]
    later = sum(row["kwh"] * 0.080 for row in chosen[1:]) + chosen[0]["kwh"] * 0.090
    assert (marginal["basis"], marginal["rows"], marginal["revised"]) == ("marginal", len(chosen), 1)
    assert marginal["kg_reserved"] == pytest.approx(later)
    assert marginal["kg_reserved_decided"] == pytest.approx(sum(row["kg"] or 0.0 for row in chosen))
    assert marginal["left_kwh"] == pytest.approx(sum(row["kwh"] for row in rows if row["site"] != "a"))
    assert marginal["models"] == ["2026-01", "2026-02"] and marginal["curtailed_pct"] == pytest.approx(100.0)
    assert (average["basis"], average["rows"], average["curtailed_pct"]) == ("average", 1, None)
    words = "".join(ET.fromstring(page(look(worked.home), "1").partition("\n")[2]).itertext())
    assert "later (2026-01, 2026-02)" in words and "location-based" in words


def test_the_head_of_the_chain_is_on_the_page_and_it_holds(worked):
    records, head = worked.store.call(lambda tx: tx.chain_head())
    chain = figures_of(worked)["chain"]
    assert (chain["records"], chain["head"], chain["problem"]) == (records, head, "")
    assert head in page(look(worked.home), "1")


def test_a_changed_row_is_named_on_the_page(worked):
    connection = sqlite3.connect(worked.home / "state.db")
    connection.executescript("UPDATE energy SET kwh = kwh * 0.5 WHERE id = 2")
    connection.close()
    chain = figures_of(worked)["chain"]
    assert "(energy 2) does not match its hash" in chain["problem"]
    html = page(look(worked.home), "1")
    assert "The hash chain is not valid" in html and "energy 2" in html


# -- pictures ----------------------------------------------------------------------


def test_every_picture_becomes_a_png(worked, tmp_path):
    folder = tmp_path / "pictures"
    arguments = ["report", str(worked.home), "--out", str(tmp_path / "r.html"), "--png", str(folder)]
    assert commands.invoke(arguments) == 0
    assert {path.name for path in folder.iterdir()} == {
        "carbon.png", "comparison.png", "mci-A.png", "mci-B.png", "loss.png", "regime.png", "energy.png",
        "rounds-tokens.png", "rounds-duration.png",
    }  # fmt: skip
    root = ET.fromstring((tmp_path / "r.html").read_text(encoding="utf-8").partition("\n")[2])
    assert len(list(root.iter("svg"))) == 9
    for path in folder.iterdir():
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert width == (956 if path.name.startswith("rounds") else 1856) and height > 150 and len(data) > 4000, path


def test_without_the_library_nothing_is_written(worked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(CurtailError, match="resvg-py"):
        run_report(worked.home, tmp_path / "r.html", None, tmp_path / "pictures")
    assert not (tmp_path / "r.html").exists() and not (tmp_path / "pictures").exists()
    assert run_report(worked.home, tmp_path / "r.html", tmp_path / "r.json") == 0


def test_a_folder_for_pictures_that_cannot_be_made_is_an_error(worked, tmp_path):
    with pytest.raises(DiskError, match="does not exist"):
        run_report(worked.home, tmp_path / "r.html", None, tmp_path / "no" / "pictures")


def test_a_run_that_did_nothing_has_the_pictures_that_need_nothing(make_world):
    names = [name for name, _ in reports.draw(look(make_world().home))]
    assert names == ["mci-A.png", "mci-B.png", "regime.png"]
