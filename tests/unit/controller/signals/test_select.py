"""Which source a run has: the section [signal], credentials, plug-ins, averages, and `curtail signal check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from doubles import FakeClock

from controller.energy.clock import LiveClock, ReplayClock, run_clock
from controller.signals import credentials, select
from controller.signals.answer import Answer
from controller.signals.select import Surroundings, open_averages, open_signal
from controller.signals.start import SignalOptions, choose_signal, has_perfect_forecast
from curtail import __main__ as entry
from curtail.commands.trace import check_signal
from curtail.commands.trace.check_signal import as_table, check
from curtail.config import RunConfig, config_from_json, load_config, parse_config
from curtail.errors import AuthError, ConfigError, NotFound, UsageError

T0 = 1_767_225_600.0
TRACE = "point_time,A,B\n2026-01-01 00:00+00:00,50,400\n2026-01-01 00:05+00:00,60,400\n"
LOGIN = {"WATTTIME_USER": "ada", "WATTTIME_PASSWORD": "pw"}


def table(section: dict[str, Any] | None, region: dict[str, Any]) -> dict[str, Any]:
    power = {"power_train": "2 kW", "power_idle": "500 W"}
    found: dict[str, Any] = {
        "run": {"name": "x"}, "model": {"preset": "d2-test"}, "data": {"path": "d"},
        "training": {"token_budget": 1000, "batch_samples": 1}, "regions": {"A": {**power, **region}, "B": power},
    }  # fmt: skip
    return found if section is None else {**found, "signal": section}


def config(section: dict[str, Any] | None = None, /, **region: object) -> RunConfig:
    return parse_config(table(section, region))


def around(clock: FakeClock | None = None, environ: dict[str, str] | None = None, **more: Any) -> Surroundings:
    return Surroundings(clock or FakeClock(T0), LOGIN if environ is None else environ, **more)


def run_file(tmp_path: Path, signal: str) -> Path:
    path = tmp_path / "run.toml"
    (tmp_path / "t.csv").write_text(TRACE)
    path.write_text(
        '[run]\nname = "x"\n[model]\npreset = "d2-test"\n[data]\npath = "d"\n'
        "[training]\ntoken_budget = 1000\nbatch_samples = 1\n"
        + "".join(f'[regions.{name}]\npower_train = "2 kW"\npower_idle = "1 kW"\n' for name in "AB")
        + signal
    )
    return path


# -- the section -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        ({"source": "electricitymaps"}, "averages, which do not show curtailment"),
        ({"source": "nowhere"}, "'nowhere' is not known: use one of trace, constant, watttime"),
        ({"source": "constant"}, 'add value = "50 g/kWh"'),
        ({"source": "constant", "value": "50 g/kWh", "unit": "g/kWh"}, "unit belongs to source = 'trace'"),
        ({"source": "watttime", "value": "50 g/kWh"}, "value belongs to source = 'constant'"),
        ({"source": "watttime", "options": {"x": 1}}, "options belong to a plug-in"),
        ({"source": "watttime", "url": "http://api.watttime.org"}, "unencrypted: use https"),
        ({"source": "watttime", "url": "api"}, "is not a URL"),
        ({"source": "constant", "value": "50 g/kWh", "url": "https://x"}, "url belongs to a live source"),
        ({"path": "t.csv"}, 'add unit = "g/kWh"'),
        ({"source": "constant", "value": "50 g/kWh", "average": "x"}, "average = 'x' is not known"),
    ],
)
def test_a_signal_that_makes_no_sense_is_refused_before_anything_starts(signal, words):
    with pytest.raises(ConfigError) as caught:
        open_signal(config(signal), around())
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        ({"value": 50}, "has no unit"),
        ({"unit": "kg/MWh"}, "use one of g/kWh, lb/MWh"),
        ({"password": "x"}, "unknown key 'password'"),
        ({"options": {"api_key": "x"}}, "looks like a secret"),
        ({"options": {"deep": {"Token": "x"}}}, "looks like a secret"),
        ({"options": 3}, "a table is needed"),
        ({"forecast": "yes"}, "true or false"),
    ],
)
def test_a_section_with_a_mistake_or_a_secret_is_refused_by_key(signal, words):
    with pytest.raises(ConfigError) as caught:
        config(signal)
    assert words in str(caught.value)


def test_the_stored_form_keeps_the_signal_and_paths_are_beside_the_run_file(tmp_path):
    read = load_config(run_file(tmp_path, '[signal]\nsource = "p"\ncredentials = "c"\n[signal.options]\nn = [1, 2]\n'))
    assert read.signal.credentials == str(tmp_path / "c") and read.signal.options == {"n": [1, 2]}
    assert config_from_json(read.to_json()) == read


def test_a_run_without_a_signal_says_how_to_give_one(tmp_path):
    with pytest.raises(UsageError) as caught:
        open_signal(config(), around())
    assert caught.value.remedy == "add a section [signal] to it", "`signal check` takes no trace"
    with pytest.raises(UsageError, match=r"add a section \[signal\] to it, or give --trace and --unit"):
        choose_signal(SignalOptions(), config(), around())


# -- credentials ---------------------------------------------------------------------


def test_credentials_come_from_the_environment_or_else_from_a_private_file(tmp_path):
    file = tmp_path / "login"
    file.write_text("# mine\nexport WATTTIME_USER = bob\nWATTTIME_PASSWORD=a=b\n")
    file.chmod(0o600)
    names = ("WATTTIME_USER", "WATTTIME_PASSWORD")
    assert credentials.find(names, {}, file).values == ("bob", "a=b")
    assert credentials.find(names, LOGIN, file).values == ("ada", "pw")
    file.chmod(0o640)
    with pytest.raises(AuthError, match="other users can read"):
        credentials.find(names, {}, file)
    with pytest.raises(AuthError, match="WATTTIME_USER is not set in the environment"):
        credentials.find(names, {}, None)
    with pytest.raises(AuthError, match="WATTTIME_PASSWORD is not set"):
        credentials.find(names, {"WATTTIME_USER": "ada"}, None)
    with pytest.raises(NotFound, match="there is no file"):
        credentials.find(names, {}, tmp_path / "none")


def test_without_credentials_nothing_starts():
    with pytest.raises(AuthError, match="WATTTIME_USER"):
        open_signal(config({"source": "watttime"}), around(environ={}))


# -- plug-ins ------------------------------------------------------------------------


class Plug:
    name = "plug"

    def __init__(self, regions: Any, options: Any) -> None:
        self.regions, self.options = regions, options

    def fetch(self, region: str, now: float) -> Answer:
        return Answer(((now, {"north": 10.0, "B": 700.0}[region]),), "lb/MWh", 300.0)


def test_a_plugin_is_found_by_its_entry_point_and_polled_like_the_others(monkeypatch):
    class Point:
        name = "plug"

        def load(self) -> type[Plug]:
            return Plug

    monkeypatch.setattr(select, "entry_points", lambda group: [Point()] if group == "curtail.signals" else [])
    clock = FakeClock(T0)
    signal = open_signal(config({"source": "plug", "options": {"a": 1}}, signal="north"), around(clock))
    assert signal.polled is not None and signal.trace is None
    signal.polled.poll()
    assert signal.source.reading("A", T0).mci == pytest.approx(4.5359237)
    assert signal.source.reading("A", T0).source == "plug north"


@pytest.mark.parametrize("broken", [lambda: 1 / 0, lambda: lambda regions, options: object()])
def test_a_plugin_that_cannot_be_used_is_refused_at_the_start(broken):
    with pytest.raises(ConfigError, match="the plug-in p"):
        open_signal(config({"source": "p"}), around(plugins=lambda: {"p": broken}))


def test_a_plugin_cannot_take_a_name_of_ours():
    with pytest.raises(ConfigError, match="averages"):
        open_signal(config({"source": "electricitymaps"}), around(plugins=lambda: {"electricitymaps": lambda: Plug}))


# -- what `controller start` makes of it -----------------------------------------------


def test_a_trace_on_the_command_line_overrides_the_run_file(tmp_path):
    (tmp_path / "t.csv").write_text(TRACE)
    constant = config({"source": "constant", "value": "50 g/kWh"})
    chosen = choose_signal(SignalOptions(trace=tmp_path / "t.csv", unit="g/kWh"), constant, around())
    assert chosen.name == "trace" and chosen.source.reading("B", T0).mci == 400.0
    assert not has_perfect_forecast(SignalOptions(trace=tmp_path / "t.csv"), constant, chosen)
    assert has_perfect_forecast(SignalOptions(trace=tmp_path / "t.csv", forecast=True), constant, chosen)
    assert choose_signal(SignalOptions(), constant, around()).name == "constant"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"speed": 60.0}, "--speed 60 is for a trace; constant is live"),
        ({"forecast": True}, "--forecast is for a trace"),
        ({"unit": "g/kWh"}, "no --trace is given"),
        ({"trace": Path("t.csv")}, "add --unit g/kWh or --unit lb/MWh"),
    ],
)
def test_flags_of_a_trace_do_not_go_with_a_live_signal(more, words):
    with pytest.raises(UsageError, match=words):
        choose_signal(SignalOptions(**more), config({"source": "constant", "value": "50 g/kWh"}), around())


def test_the_trace_of_the_run_file_is_replayed(tmp_path):
    run = load_config(run_file(tmp_path, '[signal]\npath = "t.csv"\nunit = "g/kWh"\nforecast = true\n'))
    chosen = choose_signal(SignalOptions(speed=60.0), run, around())
    assert chosen.trace is not None and chosen.source.forecast("A", T0, 600.0) is not None
    assert has_perfect_forecast(SignalOptions(speed=60.0), run, chosen)
    clock = run_clock(chosen.trace.start, 60.0, FakeClock(9e9))
    assert type(clock) is ReplayClock and clock.now() == T0


def test_a_live_signal_runs_on_the_machines_clock_which_never_goes_back():
    clock = FakeClock(T0)
    run = run_clock(T0 - 7200.0, None, clock)
    assert isinstance(run, LiveClock) and run.now() == T0
    clock.t += 10.0
    assert run.now() == T0 + 10.0
    clock.t -= 5.0
    assert run.now() == T0 + 10.0
    with pytest.raises(UsageError, match="3600 s ahead of this machine's"):
        run_clock(T0 + 3605.0, None, clock)


# -- averages ----------------------------------------------------------------------------


def maps(value: object = 333.0, zone: str = "DE", status: int = 200) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["auth-token"] == "tok"
        row = {"datetime": "2025-12-31T23:00:00.000Z", "carbonIntensity": value, "isEstimated": True}
        if request.url.path.endswith("history"):
            return httpx.Response(status, json={"zone": zone, "history": [row]})
        return httpx.Response(status, json={"zone": zone, **row})

    return httpx.MockTransport(answer)


AVERAGED = {"source": "constant", "value": "50 g/kWh", "average": "electricitymaps"}


def test_an_average_is_labelled_and_never_a_reading():
    source = open_averages(config(AVERAGED), around(environ={"ELECTRICITYMAPS_TOKEN": "tok"}, transport=maps()))
    found = source.latest("DE")
    assert (found.basis, found.g_per_kwh, found.estimated, found.at) == ("average", 333.0, True, T0 - 3600.0)
    assert source.history("DE") == (found,)
    assert not hasattr(found, "mci") and not hasattr(source, "reading") and not hasattr(source, "fetch")


def test_signal_check_shows_averages_beside_and_does_not_judge_them():
    for transport, value in ((maps(), 333.0), (maps("x"), None), (maps(zone="FR"), None), (maps(status=500), None)):
        rows = check(config(AVERAGED, zone="DE"), around(environ={"ELECTRICITYMAPS_TOKEN": "tok"}, transport=transport))
        assert [(row.region, row.basis, row.verdict) for row in rows] == [
            ("A", "marginal", "curtailed"), ("B", "marginal", "curtailed"), ("A", "average", "accounts only"),
        ]  # fmt: skip
        assert rows[2].value == value


# -- `curtail signal check` ----------------------------------------------------------------


def plugged(**mci: float) -> Any:
    class Feed:
        name = "plug"

        def __init__(self, regions: Any, options: Any) -> None:
            pass

        def fetch(self, region: str, now: float) -> Answer:
            return Answer(((now - 60.0, mci[region]), (now + 240.0, 900.0)), "g/kWh", 300.0)

    return {"p": lambda: Feed}


def test_signal_check_says_what_is_known_of_every_region():
    rows = check(config({"source": "p"}), around(plugins=lambda: plugged(A=50.0)))
    assert [(row.region, row.value, row.age_s, row.verdict) for row in rows] == [
        ("A", 50.0, 60.0, "curtailed"), ("B", None, None, "unknown"),
    ]  # fmt: skip
    assert "MCI 50 is below 100" in rows[0].reason and "KeyError" in rows[1].reason
    text = as_table(rows).splitlines()
    assert text[0].split() == ["region", "source", "basis", "value", "unit", "age", "verdict", "reason"]
    assert "50.0" in text[1] and "60 s" in text[1] and "unknown" in text[2]


def test_the_exit_code_says_whether_any_region_is_unknown(tmp_path, capsys, monkeypatch):
    path = run_file(tmp_path, '[signal]\nsource = "constant"\nvalue = "50 g/kWh"\n')
    assert entry.run(["signal", "check", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["region"], row["value"], row["unit"]) for row in rows] == [
        ("A", 50.0, "gCO2/kWh"), ("B", 50.0, "gCO2/kWh"),
    ]  # fmt: skip
    monkeypatch.setattr(check_signal, "Surroundings", lambda c, e: around(plugins=lambda: plugged(A=50.0)))
    path = run_file(tmp_path, '[signal]\nsource = "p"\n')
    assert entry.run(["signal", "check", str(path)]) == 1
    said = capsys.readouterr()
    assert "whose MCI is unknown: B" in said.err and "unknown" in said.out


def test_a_trace_is_checked_at_its_beginning(tmp_path, capsys):
    path = run_file(tmp_path, '[signal]\npath = "t.csv"\nunit = "g/kWh"\n')
    assert entry.run(["signal", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "trace t.csv" in out and "not curtailed" in out
