"""Live signals: whatever a source does, training goes on only with a fresh value that can be believed."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from doubles import FakeClock

from controller.signals import http as webs
from controller.signals.answer import Answer, SignalError
from controller.signals.credentials import Credential
from controller.signals.polling import PolledSource, pause_after
from controller.signals.replay import ConstantSource
from controller.signals.watttime import WattTime
from controller.signals.zero_guard import DoubtingSource

T0 = 1_000_000.0  # where the clock of the tests begins
POUNDS = 0.45359237
USER, PASSWORD = "ada", "s3cret-word"


class Standin:
    """WattTime's documented answers on loopback; `mode` says what it does wrong."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.now = T0
        self.mci = {"A": 100.0, "B": 120.0}  # lb/MWh
        self.asked: list[str] = []
        self.tokens = 0
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = outer.answer(self.path, self.headers)
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "77")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *parts: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.01), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, target: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        path = urlsplit(target).path
        asked = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
        self.asked.append(path)
        if self.mode == "hang":
            self.release.wait(10.0)
        if path == "/login":
            import base64

            right = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if headers.get("Authorization") != f"Basic {right}" or self.mode == "locked":
                return 401, b"{}"
            self.tokens += 1
            return 200, json.dumps({"token": f"token{self.tokens}"}).encode()
        if headers.get("Authorization") != f"Bearer token{self.tokens}":
            return 401, b'{"error": "no token"}'
        wrong = {"500": 500, "403": 403, "429": 429, "moved": 302}
        if self.mode in wrong:
            return wrong[self.mode], b"{}"
        if self.mode == "empty body":
            return 200, b""
        if self.mode == "html":
            return 200, b"<html>down for maintenance</html>"
        return 200, json.dumps(self.series(path, asked)).encode()

    def series(self, path: str, asked: dict[str, str]) -> dict[str, Any]:
        first = self.now - self.now % 300.0 + {"future": 3600.0, "past": -3600.0}.get(self.mode, 0.0)
        count = 1 + 12 * int(asked.get("horizon_hours", 0))
        if path == "/v3/historical":
            first = datetime.fromisoformat(asked["start"]).timestamp()
            count = int((datetime.fromisoformat(asked["end"]).timestamp() - first) // 300.0) + 1
        value = 0.0 if self.mode.startswith("zero") else self.mci[asked["region"]]
        later = {"zero forecast": 0.0, "calm": 30.0}.get(self.mode, 900.0)
        values = [value] + [later] * (count - 1) if path == "/v3/forecast" else [value] * count
        if self.mode == "NaN":
            values[0] = float("nan")
        if self.mode == "null":
            values[0] = None  # type: ignore[call-overload]
        if self.mode == "huge":
            values[0] = 9000.0
        meta = {
            "region": "ELSEWHERE" if self.mode == "other region" else asked["region"],
            "signal_type": "health_damage" if self.mode == "other signal" else asked["signal_type"],
            "units": "percentile" if self.mode == "percentile" else "lbs_co2_per_mwh",
            "data_point_period_seconds": 300,
            "model": {"date": "2026-03-01"},
            "generated_at": stamp(self.now - (3600.0 if self.mode == "frozen" else 0.0)),
            "warnings": [],
        }
        data = [{"point_time": stamp(first + 300.0 * i), "value": value} for i, value in enumerate(values)]
        return {"meta": meta, "data": [] if self.mode == "no data" else data}


def stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()


@pytest.fixture
def standin():
    made = Standin()
    yield made
    made.close()


def watttime(standin: Standin, clock: object, silence_s: float = 10.0, password: str = PASSWORD) -> WattTime:
    web = webs.open_web(standin.url)
    web.timeout = httpx.Timeout(silence_s)
    return WattTime(web, Credential((USER, password)), clock)  # type: ignore[arg-type]


# -- at the service: no permit, and the reason is said ---------------------------


class Live:
    """A controller in memory whose readings come from a feed; one site in region A."""

    def __init__(self, world: Any, feed: object, standin: Standin | None = None) -> None:
        self.world, self.standin = world, standin
        self.polled = PolledSource(feed, {"A": "A", "B": "B"}, 30.0, 600.0, world.clock)  # type: ignore[arg-type]
        world.source = DoubtingSource(self.polled, ["A", "B"])
        # windows of the stand-in last minutes; whether one is worth a start is not asked here
        policy = dataclasses.replace(world.config.policy, min_window=0.0, start=0.0, stop=0.0)
        world.config = dataclasses.replace(world.config, policy=policy)
        world.start()
        world.join("a", "A")
        self.trains = False

    def beat(self, later: float = 0.0) -> Any:
        """What the site hears `later` seconds on, after a poll."""
        self.world.clock.t += later
        if self.standin is not None:
            self.standin.now = self.world.clock.t
        self.polled.poll()
        self.world.tick()
        reply = self.world.beat("a", "job", "train") if self.trains else self.world.beat("a")
        self.trains = reply.granted
        return reply


@pytest.fixture
def live(make_world, standin):
    def make() -> Live:
        world = make_world()
        return Live(world, watttime(standin, world.clock), standin)

    return make


def test_the_control_a_live_value_is_granted_in_grams(live):
    site = live()
    reply = site.beat()
    assert reply.granted and "MCI 45 is below 100" in reply.reason
    reading = site.world.service.readings["A"]
    assert reading.mci == 100.0 * POUNDS, "pounds per MWh are converted exactly"
    assert reading.source == "watttime A"


LIES = {
    "percentile": "the unit of the answer is percentile, not lbs_co2_per_mwh",
    "zero": "all regions read exactly 0 at once",
    "zero forecast": "exactly 0 for a whole day",
    "future": "s in the future; check the clocks",
    "past": "s old; at most 600 s",
    "frozen": "computed 3600 s ago and are not renewed",
    "empty body": "was empty",
    "html": "is not JSON",
    "no data": "has no values",
    "NaN": "not a finite number",
    "null": "is not a number",
    "huge": "above 3000",
    "other region": "the region of the answer is ELSEWHERE",
    "other signal": "the signal_type of the answer is health_damage",
}


@pytest.mark.parametrize("mode", LIES)
def test_a_source_that_lies_pauses_training_at_once_and_the_reason_is_said(live, standin, mode):
    site = live()
    assert site.beat().granted
    standin.mode = mode
    reply = site.beat(31.0)
    assert not reply.granted and LIES[mode] in reply.reason
    status = site.world.status()
    assert status.regime == "PAUSED" and LIES[mode] in status.reason
    standin.mode = "ok"
    assert site.beat(31.0).granted, "it comes back by itself"


SILENCES = {
    "500": "status 500",
    "403": "no access to this region",
    "429": "status 429",
    "moved": "status 302",
}


@pytest.mark.parametrize("mode", SILENCES)
def test_a_source_that_fails_pauses_training_when_its_last_value_is_stale(live, standin, mode):
    site = live()
    assert site.beat().granted
    standin.mode = mode
    assert site.beat(31.0).granted, "the last value is still fresh"
    reply = site.beat(600.0)
    assert not reply.granted and SILENCES[mode] in reply.reason and "the last value is" in reply.reason
    standin.mode = "ok"
    assert site.beat(301.0).granted


def test_a_source_that_dies_pauses_training_and_says_that_it_cannot_be_reached(live, standin):
    site = live()
    assert site.beat().granted
    standin.close()
    site.beat(31.0)
    reply = site.beat(600.0)
    assert not reply.granted and "watttime: cannot be reached" in reply.reason


def test_a_source_that_was_never_there_gives_no_permit(make_world):
    class Down:
        name = "down"

        def fetch(self, region: str, now: float) -> Answer:
            raise SignalError("nobody is there")

    site = Live(make_world(), Down())
    site.world.tick()
    assert site.world.beat("a").reason == "down has not answered yet"
    reply = site.beat()
    assert not reply.granted and "nobody is there" in reply.reason


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        threading.Event().wait(0.005)


def test_a_source_that_hangs_never_holds_up_the_controller_and_training_pauses(make_world):
    class Hanging:
        name = "slow"

        def __init__(self) -> None:
            self.calls = 0
            self.go = threading.Event()

        def fetch(self, region: str, now: float) -> Answer:
            self.calls += 1
            if self.calls > 2:
                self.go.wait(30.0)
            return Answer(((now, 50.0),), "g/kWh", 300.0)

    feed = Hanging()
    site = Live(make_world(), feed)
    assert site.beat().granted
    site.world.clock.t += 31.0
    site.polled.start()
    try:
        wait_for(lambda: feed.calls == 3)
        site.world.tick()
        assert site.world.beat("a").granted, "the last value is still fresh"
        site.world.clock.t += 600.0
        site.world.tick()
        reply = site.world.beat("a")
        assert not reply.granted and "slow has not answered for 600 s" in reply.reason
    finally:
        feed.go.set()
        site.polled.stop()


def test_a_hanging_answer_of_the_network_ends_by_itself(standin):
    standin.mode = "hang"
    feed = watttime(standin, FakeClock(T0), silence_s=0.05)
    with pytest.raises(SignalError, match="no response from /login within"):
        feed.fetch("A", T0)


def test_an_answer_that_drips_is_cut_off(standin):
    clock = FakeClock(T0)

    class Drip(httpx.SyncByteStream):
        def __iter__(self):
            while True:
                clock.t += 9.0
                yield b" "

    web = webs.open_web("http://127.0.0.1", httpx.MockTransport(lambda r: httpx.Response(200, stream=Drip())))
    with pytest.raises(SignalError, match="not complete after 30 s"):
        webs.ask(web, clock, "/x", {}, {})


def test_a_feed_that_raises_anything_makes_its_region_unknown_only(make_world):
    class Broken:
        name = "broken"

        def fetch(self, region: str, now: float) -> Answer:
            if region == "A":
                raise KeyError("oops")
            return Answer(((now, 50.0),), "g/kWh", 300.0)

    site = Live(make_world(), Broken())
    reply = site.beat()
    assert not reply.granted and "broken: failed with KeyError" in reply.reason
    assert site.world.service.verdicts["B"].granted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unit": "percentile"}, "the unit is percentile"),
        ({"basis": "average"}, "average, not marginal"),
        ({"points": ()}, "has no values"),
        ({"period": 0.0}, "the values are valid for"),
        ({"period": 3600.0}, "the values are valid for"),
        ({"points": ((T0, 50.0), (T0, 60.0))}, "not in chronological order"),
        ({"points": ((T0 + 301.0, 50.0),)}, "in the future"),
        ({"made": T0 + 900.0}, "computed 900 s in the future"),
        ({"points": ((T0, 50.0), (T0 + 300.0, float("inf")))}, "not a finite number"),
    ],
)
def test_an_answer_of_a_plugin_is_held_to_the_same_rules(make_world, change, words):
    class Plugged:
        name = "plugged"

        def fetch(self, region: str, now: float) -> Answer:
            return replace(Answer(((T0, 50.0),), "g/kWh", 300.0), **change)

    reply = Live(make_world(), Plugged()).beat()
    assert not reply.granted and words in reply.reason


# -- zeros ------------------------------------------------------------------------


class Fixed:
    name = "fixed"

    def __init__(self, **mci: float) -> None:
        self.mci = mci

    def fetch(self, region: str, now: float) -> Answer:
        if region not in self.mci:
            raise SignalError("down")
        return Answer(((now, self.mci[region]),), "g/kWh", 300.0)


@pytest.mark.parametrize(
    ("mci", "granted"),
    [({"A": 0.0, "B": 300.0}, True), ({"A": 0.0, "B": 0.0}, False), ({"A": 0.0}, False), ({"A": -3.0, "B": 0.0}, True)],
)
def test_a_zero_is_believed_only_beside_another_value(make_world, mci, granted):
    assert Live(make_world(), Fixed(**mci)).beat().granted is granted


def test_a_true_zero_is_not_interrupted_between_two_answers_but_one_that_is_not_renewed_is(live, standin):
    site = live()
    standin.mode, standin.mci = "calm", {"A": 0.0, "B": 900.0}
    later = 300.0 - T0 % 300.0 + 1.0  # just after the end of the period
    assert site.beat().granted
    site.world.clock.t += later
    site.world.tick()
    assert site.world.beat("a", "job", "train").granted, "the new value is on its way"
    site.world.clock.t += 121.0
    site.world.tick()
    assert "has not been renewed" in site.world.beat("a", "job", "train").reason
    assert site.beat(1.0).granted


def test_a_single_region_may_be_at_zero(make_world):
    world = make_world()
    polled = PolledSource(Fixed(A=0.0), {"A": "A"}, 30.0, 600.0, world.clock)
    polled.poll()
    assert DoubtingSource(polled, ["A"]).reading("A", T0).mci == 0.0


# -- WattTime ---------------------------------------------------------------------


def test_one_login_serves_all_questions_until_the_token_grows_old(standin):
    clock = FakeClock(T0)
    feed = watttime(standin, clock)
    for region in ("A", "B"):
        feed.fetch(region, T0)
    assert standin.asked.count("/login") == 1
    clock.t += 25 * 60.0
    feed.fetch("A", T0)
    assert standin.asked.count("/login") == 2


def test_a_token_that_ended_early_is_renewed_once(standin):
    feed = watttime(standin, FakeClock(T0))
    feed.fetch("A", T0)
    standin.tokens += 1  # the one that the feed holds is void
    assert feed.fetch("A", T0).points[0] == (T0 - T0 % 300.0, 100.0)


def test_a_wrong_password_is_not_tried_over_and_over_and_never_shown(standin, caplog):
    clock = FakeClock(T0)
    feed = watttime(standin, clock, password="wr0ng-word")
    polled = PolledSource(feed, {"A": "A", "B": "B"}, 30.0, 600.0, clock)
    with caplog.at_level(logging.DEBUG):
        polled.poll()
        clock.t += 30.0
        polled.poll()
    assert standin.asked == ["/login"]
    reason = polled.reading("A", clock.t).reason
    assert "the user or the password was refused" in reason
    assert "wr0ng-word" not in caplog.text + reason + repr(feed.__dict__.get("_web"))
    assert "wr0ng-word" not in repr(Credential(("ada", "wr0ng-word")))


def test_the_forecast_reaches_as_far_as_it_is_known(standin):
    clock = FakeClock(T0)
    polled = PolledSource(watttime(standin, clock), {"A": "A"}, 30.0, 600.0, clock)
    polled.poll()
    forecast = polled.forecast("A", T0, 86400.0)
    first = T0 - T0 % 300.0
    assert forecast is not None and forecast.known_until == first + 86400.0 + 300.0
    assert forecast.value_at(first + 300.0) == 900.0 * POUNDS
    assert polled.forecast("A", T0 + 601.0, 86400.0) is None, "it is as old as its live value"


def test_the_past_is_asked_for_in_parts_and_keeps_what_it_was_made_with(standin):
    feed = watttime(standin, FakeClock(T0))
    start, days = T0 - T0 % 300.0, 70
    settled = feed.historical("A", start, start + days * 86400.0)
    assert standin.asked.count("/v3/historical") == 3
    assert len(settled.points) == days * 288 and settled.points[-1][0] == start + days * 86400.0 - 300.0
    assert (settled.model, settled.basis, settled.period) == ("2026-03-01", "marginal", 300.0)
    assert settled.points[0][1] == 100.0 * POUNDS


# -- when to ask again ------------------------------------------------------------


def test_pauses_double_up_to_five_minutes():
    assert [pause_after(n) for n in (1, 2, 3, 4, 7, 50)] == [5.0, 10.0, 20.0, 40.0, 300.0, 300.0]


def test_a_source_is_asked_at_its_pace_and_rarer_after_failures(standin):
    clock = FakeClock(T0)
    polled = PolledSource(watttime(standin, clock), {"A": "A"}, 30.0, 600.0, clock)
    assert polled.poll() == 30.0
    standin.mode = "500"
    pauses = []
    for _ in range(4):
        clock.t += polled.poll()
        pauses.append(polled.poll())
    assert pauses == [5.0, 10.0, 20.0, 40.0]
    standin.mode = "429"
    clock.t += 40.0
    assert polled.poll() == 80.0, "longer than the 77 s that the source asks for"
    standin.mode, standin.now = "ok", clock.t + 80.0
    clock.t += 80.0
    assert polled.poll() == 30.0


def test_a_source_that_names_its_pause_is_given_it(standin):
    clock = FakeClock(T0)
    polled = PolledSource(watttime(standin, clock), {"A": "A"}, 30.0, 600.0, clock)
    standin.mode = "429"
    assert polled.poll() == 77.0


def test_a_constant_is_always_fresh():
    source = ConstantSource(50.0)
    for now in (T0, T0 + 299.0, T0 + 1e6):
        reading = source.reading("A", now)
        assert reading.mci == 50.0 and reading.point_time <= now < reading.valid_until
    assert source.forecast("A", T0, 60.0) is None and not source.ended(T0)
