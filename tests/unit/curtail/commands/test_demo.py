"""The demo's decisions: its files, its end, what it tells. Its processes are tested elsewhere."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import tomllib
from pathlib import Path

import pytest

from curtail import wire
from curtail.commands.demo import inputs, run
from curtail.commands.demo.processes import MARK, LocalCluster, marked
from curtail.config import parse_config
from curtail.errors import NotFound, UsageError
from curtail.grid.trace import load_trace
from nanochat.presets import preset

SITE = wire.SiteStatus("caiso", "CAISO_NORTH", "IDLE", "paused", False, "waits", None, 0, None, 0.0, 0, 0.1, 0.2, 0.1)
STATUS = wire.Status(
    protocol=wire.PROTOCOL, run="r", name="demo", state="RUNNING", now=600.0, started=0.0, speed=60.0, regime="PAUSED",
    regime_since=0.0, reason="no window", regime_seconds={"PAUSED": 600.0, "LOCAL": 30.0, "FEDERATED": 0.0},
    tokens=4096, token_budget=8192, version=2, rounds=2, round=None, loss_first=7.6, loss_last=5.0,
    checkpoint="/x/v000002",
    energy=wire.EnergyStatus(1.0, 0.5, 0.06, 0.2, 99.0, 0.5, 0.0), regions=(), sites=(SITE,), events=(),
    signal_ended=True,
)  # fmt: skip


def test_the_run_file_is_valid_and_fits_the_model() -> None:
    config = parse_config(tomllib.loads(inputs.run_file(1_000_000, seed=7)))
    assert config.run.seed == 7 and config.training.token_budget == 1_000_000
    assert tuple(config.regions) == tuple(inputs.SITES.values())
    assert config.policy.permit > 2 * config.fleet.heartbeat
    model = preset(config.model.preset)
    assert (model.vocab_size, model.sequence_len) == (inputs.VOCABULARY, inputs.SEQUENCE)


def test_a_reading_lives_longer_than_the_permits_that_rest_on_it() -> None:
    config = parse_config(tomllib.loads(inputs.run_file(1, seed=1)))
    wall = (config.policy.max_reading_age - inputs.PERIOD_S) / inputs.SPEED
    assert wall > config.policy.permit


def test_the_trace_goes_through_all_regimes(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(inputs.trace(1))
    trace = load_trace(path, "g/kWh", inputs.SITES.values())
    counts = [sum(trace.values[r][i] < 100 for r in trace.values) for i in range(len(trace.stamps))]  # type: ignore[operator]
    assert [n for i, n in enumerate(counts) if i == 0 or counts[i - 1] != n] == [0, 1, 2, 3, 1, 0]
    whole = sum(wall for wall, _ in inputs.COURSE)
    assert (trace.end - trace.start) / inputs.SPEED == whole and whole < 200
    assert all(wall * inputs.SPEED % inputs.PERIOD_S == 0 for wall, _ in inputs.COURSE)


def test_the_budget_is_whole_batches_and_grows_with_rate_and_cores() -> None:
    batch = inputs.BATCH * inputs.SEQUENCE
    assert inputs.token_budget(5000.0, 2) % batch == 0
    assert inputs.token_budget(5000.0, 1) < inputs.token_budget(5000.0, 2) < inputs.token_budget(5000.0, 3)
    assert inputs.token_budget(5000.0, 3) == inputs.token_budget(5000.0, 64)
    assert inputs.token_budget(0.001, 1) == batch


def test_texts_are_the_same_every_time_and_no_tests(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "pkg/c.py", "test/d.py", "site-packages/e.py", "f.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x" * 100)
    assert [p.name for p in inputs.choose_texts(tmp_path, 1000)] == ["a.py", "b.py", "c.py"]
    assert [p.name for p in inputs.choose_texts(tmp_path, 150)] == ["a.py", "b.py"]
    with pytest.raises(NotFound, match="are not in"):
        inputs.choose_texts(tmp_path, 10_000)


@pytest.mark.parametrize(
    ("change", "over"),
    [
        ({}, True),
        ({"signal_ended": False}, False),
        ({"regime": "LOCAL"}, False),
        ({"round": wire.RoundStatus(3, "OPEN", 2, ("caiso",), (), 1.0)}, False),
        ({"sites": (dataclasses.replace(SITE, phase="drain"),)}, False),
        ({"signal_ended": False, "state": "FINISHED", "regime": "LOCAL", "sites": ()}, True),
    ],
)
def test_the_end_comes_when_nothing_is_left_to_do(change: dict[str, object], over: bool) -> None:
    assert run.is_over(dataclasses.replace(STATUS, **change)) is over  # type: ignore[arg-type]


def test_a_failed_job_before_the_first_token_is_the_end() -> None:
    failed = dataclasses.replace(SITE, state="BACKOFF", reason="job ended with 1: no torch")
    assert run.jobs_fail(STATUS) is None
    assert run.jobs_fail(dataclasses.replace(STATUS, sites=(failed,))) is None
    assert run.jobs_fail(dataclasses.replace(STATUS, sites=(SITE, failed), tokens=0)) == "job ended with 1: no torch"


def test_changes_are_told_once() -> None:
    first = run.changes(None, STATUS)
    assert first == [
        "PAUSED: no window",
        "version 2 after 4,096 tokens, loss 5.000",
        "caiso joined in CAISO_NORTH",
    ]
    assert run.changes(STATUS, STATUS) == []
    after = dataclasses.replace(
        STATUS, regime="LOCAL", reason="curtailed: caiso", version=3, tokens=8192,
        sites=(dataclasses.replace(SITE, state="STARTING", reason="MCI 40"),),
    )  # fmt: skip
    assert run.changes(STATUS, after) == [
        "LOCAL: curtailed: caiso",
        "version 3 after 8,192 tokens, loss 5.000",
        "caiso is starting: MCI 40",
    ]
    assert run.changes(STATUS, dataclasses.replace(STATUS, sites=())) == ["caiso left"]


def test_the_summary_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    summary = run.summarise(STATUS, 181.26, {"run": 170.0})
    assert list(summary)[:11] == [
        "rounds", "versions", "tokens", "loss_first", "loss_last", "regime_seconds", "energy_kwh", "kg_co2",
        "kg_co2_always_on", "curtailed_energy_pct", "checkpoint",
    ]  # fmt: skip
    run.tell(summary, json_out=True)
    assert json.loads(capsys.readouterr().out) == summary
    run.tell(summary, json_out=False)
    text = capsys.readouterr().out
    assert "curtail eval /x/v000002" in text and "always on 0.5 kg (-88 %)" in text and "3 min 1 s" in text


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="is not an empty folder"):
        run.run_demo(json_out=True, keep=tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_demo_that_cannot_start_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "none")})
    with pytest.raises(NotFound):
        run.run_demo(json_out=True, keep=None, seed=1)
    assert list((tmp_path / "curtail").iterdir()) == []


def test_processes_are_found_by_their_mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess
    import sys

    cluster = LocalCluster(tmp_path)
    stray = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={MARK: cluster.mark})
    try:
        end = time.monotonic() + 10.0
        while not (found := list(marked(cluster.mark))):  # what it was started with can be read a moment later
            assert time.monotonic() < end
        assert found == [stray.pid]
        cluster.stop()
        assert stray.wait(10) == -9
    finally:
        stray.kill()
        assert stray.stdin is not None
        stray.stdin.close()
    assert os.getpid() not in set(marked(cluster.mark))


def test_the_last_line_of_a_log_says_why(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    assert cluster.last_line("caiso") == "no log was written"
    cluster.log("caiso").write_text("starting\ncurtail: the port is in use: choose another\n\n")
    assert cluster.last_line("caiso") == "the port is in use: choose another"
