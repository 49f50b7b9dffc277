"""The picture of a run at several sizes, and how it reaches a terminal, a pipe or nobody."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from curtail import wire
from curtail.commands.status.view import bar, count, duration, render, saved, sparkline
from curtail.commands.status.watch import StatusView, check_url, fetch, print_plain
from curtail.errors import Refused, Unreachable, UsageError, WireError

ROOT = Path(__file__).resolve().parents[4]


def region(name: str, mci: float | None, granted: bool, reason: str) -> wire.RegionStatus:
    history = (480.0, 510.0, 530.0, None, 90.0, 60.0, 45.0 if mci is None else mci)
    return wire.RegionStatus(name, mci, 100.0, 120.0, "trace demo.csv", granted, reason, history, 2024.0)


def site(name: str, where: str, state: str, phase: str, reason: str) -> wire.SiteStatus:
    trains = phase == "train"
    return wire.SiteStatus(
        name, where, state, phase, trains, reason, 7 if trains else None, 42 if trains else 0,
        5.3125 if trains else None, 12_345.6 if trains else 0.0, 1_204_224, 0.4, 0.31, 0.015,
    )  # fmt: skip


def snapshot() -> wire.Status:
    return wire.Status(
        protocol=wire.PROTOCOL,
        run="r-1",
        name="demo",
        state="RUNNING",
        now=1_772_360_580.0,
        started=1_772_359_200.0,
        speed=60.0,
        regime="FEDERATED",
        regime_since=1_772_359_500.0,
        reason="curtailed: north, south",
        regime_seconds={"PAUSED": 300.0, "LOCAL": 600.0, "FEDERATED": 480.0},
        tokens=1_234_944,
        token_budget=3_000_000,
        version=6,
        rounds=6,
        round=wire.RoundStatus(7, "OPEN", 6, ("north", "south"), ("north",), 3.2),
        loss_first=7.6246,
        loss_last=5.3125,
        checkpoint="/tmp/run/versions/v000006",
        energy=wire.EnergyStatus(
            1.234, 0.42, 0.0617, 0.2, 99.8, 0.61, 0.0, ledger_records=7, ledger_head="9680613206ae" + "0" * 52
        ),
        regions=(
            region("CAISO_NORTH", 47.2, True, "MCI 47 is below 100 g/kWh"),
            region("SPP_TX", 61.0, True, "MCI 61 is below 100 g/kWh"),
            region("NEM_SA", None, False, "the reading is stale: 1205 s old, at most 600 s are allowed"),
        ),
        sites=(
            site("north", "CAISO_NORTH", "TRAINING", "train", "MCI 47 is below 100 g/kWh"),
            site("south", "SPP_TX", "STARTING", "start", "MCI 61 is below 100 g/kWh"),
            site("west", "NEM_SA", "IDLE", "paused", "the reading is stale: 1205 s old, at most 600 s are allowed"),
        ),
        events=tuple(
            wire.EventStatus(number, 1_772_359_200.0 + 60 * number, "round", f"version {number} published")
            for number in range(1, 12)
        ),
        signal_ended=False,
    )


def drawn(status: wire.Status, width: int, height: int | None = None, unicode: bool = True, **more: str) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None, highlight=False)
    console.print(render(status, width, unicode, height, **more))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (100, 30)])
def test_everything_important_fits_the_screen(width: int, height: int) -> None:
    lines = drawn(snapshot(), width, height)
    assert len(lines) <= height and max(map(len, lines)) <= width
    text = "\n".join(lines)
    for expected in (
        "FEDERATED for 18 min: curtailed: north, south",
        "1.23M of 3.00M (41 %)",
        "version 6",
        "7.625 → 5.312",
        "1.23 kWh, 99.8 % of it curtailed",
        "always on 0.61 kg (-90 %); ledger head 9680613206ae",
        "47 < 100",
        "unknown (< 100)",
        "● north",
        "◐ south",
        "○ west",
        "training",
        "7/42",
        "round 7 open on version 6: committed 1 of 2, waiting for south; 3 s left",
        "version 11 published",
    ):
        assert expected in text, expected


def test_a_low_screen_cuts_the_log_first_and_then_the_sites() -> None:
    many = tuple(site(f"site-{number}", "SPP_TX", "IDLE", "paused", "waits") for number in range(40))
    status = dataclasses.replace(snapshot(), sites=many)
    lines = drawn(status, 80, 30)
    assert len(lines) <= 30
    assert "more" in "\n".join(lines) and "site-0" in "\n".join(lines)
    assert "version 11 published" in lines[-1]


def test_ascii_terminals_get_ascii() -> None:
    for width in (80, 140):
        text = "\n".join(drawn(snapshot(), width, unicode=False))
        assert text.isascii()
        assert "* north" in text and "o west" in text and "7.625 -> 5.312" in text


def test_a_run_before_its_first_step_is_drawn_too() -> None:
    status = dataclasses.replace(
        snapshot(), regime="PAUSED", reason="no site has joined", sites=(), regions=(), events=(), round=None,
        loss_first=None, loss_last=None, tokens=0, energy=wire.EnergyStatus(0.0, 0.0, 0.0, 0.0, 0.0, None, 0.0),
    )  # fmt: skip
    text = "\n".join(drawn(status, 80))
    assert "no site has joined" in text and "nothing trained yet" in text and "no round is open" in text


def test_a_notice_is_the_first_line() -> None:
    assert drawn(snapshot(), 80, 24, notice="no answer since 12:00:01")[0].startswith("no answer")


def test_sparklines_grow_with_the_reading_and_show_gaps() -> None:
    assert sparkline([0.0, 200.0, None, 400.0], 100.0, 10) == "▁▅·█"
    assert sparkline([50.0, 500.0], 100.0, 1, unicode=False) == "@"
    assert sparkline([], 100.0, 5) == ""
    assert sparkline([-50.0], 100.0, 5) == "▁"


def test_numbers_are_short() -> None:
    assert [count(n) for n in (0, 950, 12_345, 4_560_000, 11_200_000_000)] == ["0", "950", "12.3k", "4.56M", "11.2B"]
    assert [duration(s) for s in (None, 0.4, 59.6, 200, 3900, 187_200)] == [
        "-", "0 s", "1 min", "3 min 20 s", "1 h 05 min", "2 d 4 h",
    ]  # fmt: skip
    assert bar(0.5, 4) == "██░░" and bar(7, 4, unicode=False) == "####"
    assert saved(0.1, None) == "always on: nothing trained yet"


def test_a_failed_poll_keeps_the_picture_and_its_first_moment() -> None:
    view = StatusView(snapshot()).failed("refused", 100.0).failed("timed out", 107.0)
    assert view.status == snapshot() and view.since == 100.0
    notice = view.notice(110.0)
    assert notice and "(10 s)" in notice and "timed out" in notice
    assert view.seen(snapshot()).notice(111.0) is None


@pytest.mark.parametrize("url", ["127.0.0.1:8765", "ftp://x", "http://", "http://x:port", "x"])
def test_senseless_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a controller"):
        check_url(url)


def answering(code: int, body: bytes) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(code, content=body)))


def test_fetch_tells_the_kinds_of_wrong_answers_apart() -> None:
    assert fetch(answering(200, wire.encode(snapshot())), "http://x") == snapshot()
    with pytest.raises(WireError, match="HTTP 404"):
        fetch(answering(404, b"<html>"), "http://x")
    with pytest.raises(WireError, match="has an unknown format"):
        fetch(answering(200, b"{}"), "http://x")
    with pytest.raises(Refused, match="closed"):
        fetch(answering(409, wire.encode(wire.Problem("Refused", "closed", "wait"))), "http://x")

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Unreachable, match=r"no controller answers at http://x \(refused\)"):
        fetch(httpx.Client(transport=httpx.MockTransport(refuse)), "http://x")


def test_the_plain_picture_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    print_plain(snapshot(), out)
    text = out.buffer.getvalue().decode("ascii")
    assert "\x1b" not in text and "* north" in text
    assert max(map(len, text.splitlines())) <= 90


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = wire.encode(snapshot()) if self.path == wire.STATUS else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def controller() -> Iterator[str]:
    """The address of a stand-in that answers with one snapshot."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()
    thread.join()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "curtail", *arguments]


def environment(**more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CURTAIL_URL")}
    return {**env, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8", **more}


def test_a_pipe_gets_the_plain_picture_or_json(controller: str) -> None:
    plain = subprocess.run(command("status", controller), capture_output=True, env=environment(), check=True)
    assert b"\x1b" not in plain.stdout and "● north".encode() in plain.stdout
    json = subprocess.run(
        command("status", "--json"), capture_output=True, env=environment(CURTAIL_URL=controller), check=True
    )
    assert wire.decode(wire.Status, json.stdout) == snapshot()


@pytest.mark.parametrize("way", ["q", "SIGTERM"])
def test_a_terminal_gets_a_live_picture_and_its_settings_back(controller: str, way: str) -> None:
    import termios

    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        command("status", controller),
        stdin=slave, stdout=slave, stderr=slave, env=environment(COLUMNS="100", LINES="30"), start_new_session=True,
    )  # fmt: skip
    seen = b""
    deadline = time.monotonic() + 30
    while b"version 11 published" not in seen and time.monotonic() < deadline:
        seen += os.read(master, 65536)
    if way == "q":
        os.write(master, b"q")
    else:
        process.terminate()
    assert process.wait(15) == (0 if way == "q" else 143)
    os.set_blocking(master, False)
    with contextlib.suppress(BlockingIOError):
        seen += os.read(master, 65536)
    assert b"\x1b[?1049h" in seen and b"\x1b[?1049l" in seen
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


# -- what belongs to no open round, and own power --------------------------------


def lines_of(status: wire.Status, width: int, height: int | None = None) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(render(status, width, True, height))
    return [line.rstrip() for line in captured.get().splitlines()]


def with_stragglers() -> wire.Status:
    return dataclasses.replace(
        snapshot(),
        late=(wire.LateStatus("west", 5, "LATE", 400), wire.LateStatus("south", 6, "COMMITTED", 320)),
        kept=(wire.KeptStatus("north", 1280),),
    )


def test_machines_of_a_provisioner_are_shown_with_their_reasons() -> None:
    made = [
        wire.MachineStatus("hpc", n, "HELD", "[provision] most_machines = 1 machines exist", 75.0, None, "")
        for n in range(9)
    ]
    made[0] = wire.MachineStatus("hpc", 0, "ABSENT", "", None, None, "")
    lines = lines_of(dataclasses.replace(snapshot(), machines=tuple(made)), 140)
    assert "machine hpc/1 HELD 1 min 15 s: [provision] most_machines = 1 machines exist" in lines
    assert not any("hpc/0" in line for line in lines) and "2 more machines: curtail site list" in lines


def test_late_members_and_kept_samples_are_shown() -> None:
    lines = lines_of(with_stragglers(), 140)
    assert "late: west (round 5, may still contribute), south (round 6, waits for the next merge)" in lines
    assert "samples kept to train ahead: north 1.28k" in lines
    assert not [line for line in lines_of(snapshot(), 140) if line.startswith(("late:", "samples kept"))]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_the_picture_with_everything_fits_the_screen(width: int, height: int) -> None:
    status = with_own_power(with_stragglers())
    lines = lines_of(status, width, height - 1)
    assert len(lines) <= height - 1 and max(map(len, lines)) <= width
    assert any(line.startswith("late: west (round 5") for line in lines)
    assert any(line.startswith("○ west") for line in lines), "the sites come before the log"
    assert any(line.startswith("own     ") for line in lines)


def with_own_power(status: wire.Status) -> wire.Status:
    first, second, *rest = status.regions
    first = dataclasses.replace(first, grid_w=0.0, solar_w=3100.0, battery_w=1076.0, battery_soc=0.634)
    second = dataclasses.replace(second, solar_w=0.0)
    energy = dataclasses.replace(status.energy, own_kwh=0.75)
    return dataclasses.replace(status, regions=(first, second, *rest), energy=energy)


def test_panels_and_batteries_are_shown_where_there_are_some() -> None:
    lines = lines_of(with_own_power(snapshot()), 140)
    assert (
        "own     0.75 kWh; CAISO_NORTH panels 3.1 kW, battery 63 % takes 1.08 kW, grid 0 W;"
        " SPP_TX panels 0 W, grid 2.02 kW" in lines
    )
    assert not [line for line in lines_of(snapshot(), 140) if line.startswith("own")]


def test_the_snapshot_with_all_of_it_travels_as_json() -> None:
    status = with_own_power(with_stragglers())
    assert wire.decode(wire.Status, wire.encode(status)) == status
