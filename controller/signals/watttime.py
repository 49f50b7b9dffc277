"""WattTime v3: marginal emissions of grid regions: live, forecast and historical.

The live value is the first point of `/v3/forecast`: only that one is documented to
be current. `/v3/signal-index` is not used, because it is a percentile.
`/v3/historical` may be revised later, so it is used for settlement and not for
decisions. Every response must name the requested region, signal and unit. Pounds
per MWh are converted to grams per kWh exactly. Source: docs.watttime.org.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from math import ceil
from typing import Any

import httpx

from controller.signals import http as webs
from controller.signals.answer import Answer, SignalError, Unbelievable
from controller.signals.credentials import Credential
from curtail.grid.reading import to_g_per_kwh
from curtail.system.clock import Clock

ADDRESS = "https://api.watttime.org"
NAMES = ("WATTTIME_USER", "WATTTIME_PASSWORD")
"""The environment variables that WattTime's own Python package uses."""

SIGNAL, WIRE_UNIT, UNIT = "co2_moer", "lbs_co2_per_mwh", "lb/MWh"

TOKEN_S = 25 * 60.0
"""Age at which a token is renewed; it expires after 30 minutes."""

LOGIN_PAUSE_S = 60.0
"""Pause after a refused login. `/login` allows 100 requests in 5 minutes for all regions together."""

CHUNK_S = 30 * 86400.0
"""Longest historical period in one request."""

LONGEST_FORECAST_H = 72


@dataclass(frozen=True, slots=True)
class Settled:
    """Historical values at the time of the request; the source may revise them later."""

    region: str
    points: tuple[tuple[float, float], ...]  # (start of validity, gCO2/kWh)
    period: float  # s for which each value is valid
    model: str  # date of the source's model; "": it names none
    asked: float  # Unix time of the request
    basis: str = "marginal"


class WattTime:
    """WattTime as a feed. Not thread-safe.

    Args: horizon: length of the requested forecast in seconds, at most 72 h.
    """

    name = "watttime"

    def __init__(self, web: httpx.Client, credential: Credential, clock: Clock, horizon: float = 86400.0) -> None:
        self._web = web
        self._user, self._password = credential.values
        self._clock = clock
        self._hours = min(LONGEST_FORECAST_H, max(0, ceil(horizon / 3600.0)))
        self._token: str | None = None
        self._renew = 0.0  # when to renew the token, monotonic
        self._refused = float("-inf")  # when the last login was refused, monotonic

    def fetch(self, region: str, now: float) -> Answer:
        """The live value of `region` and its forecast. Raises: SignalError."""
        params: dict[str, str | int] = {"region": region, "signal_type": SIGNAL, "horizon_hours": self._hours}
        meta, points = self._series("/v3/forecast", params)
        made = meta.get("generated_at")
        return Answer(points, UNIT, _period(meta, points), None if made is None else _moment(made, "generated_at"))

    def historical(self, region: str, start: float, stop: float) -> Settled:
        """The present values for [start, stop), for settlement. Raises: SignalError."""
        found: dict[float, float] = {}
        meta: Mapping[str, Any] = {}
        at = start
        while at < stop:
            end = min(stop, at + CHUNK_S)
            params = {"region": region, "signal_type": SIGNAL, "start": _text(at), "end": _text(end)}
            meta, points = self._series("/v3/historical", params)
            found |= {point: to_g_per_kwh(value, UNIT) for point, value in points if start <= point < stop}
            at = end
        model = meta.get("model")
        date = str(model.get("date", "")) if isinstance(model, Mapping) else ""
        rows = tuple(sorted(found.items()))
        return Settled(region, rows, _period(meta, rows), date, self._clock.wall())

    def _series(
        self, path: str, params: Mapping[str, str | int]
    ) -> tuple[Mapping[str, Any], tuple[tuple[float, float], ...]]:
        try:
            answer = self._ask(path, params)
        except webs.Unauthorised:
            self._token = None  # it may have expired early: log in again and retry once
            answer = self._ask(path, params)
        meta, data = answer.get("meta"), answer.get("data")
        if not isinstance(meta, Mapping) or not isinstance(data, list):
            raise Unbelievable(f"the answer of {path} has no meta and data")
        wanted = {"units": WIRE_UNIT, "region": params["region"], "signal_type": SIGNAL}
        for key, value in wanted.items():
            if meta.get(key) != value:
                words = {"units": "unit"}.get(key, key)
                raise Unbelievable(f"the {words} of the answer is {str(meta.get(key))[:40]}, not {value}")
        if not data:
            raise Unbelievable(f"the answer of {path} has no values")
        return meta, tuple(_point(row) for row in data)

    def _ask(self, path: str, params: Mapping[str, str | int]) -> dict[str, Any]:
        if self._token is None or self._clock.monotonic() >= self._renew:
            self._login()
        return webs.ask(self._web, self._clock, path, params, {"Authorization": f"Bearer {self._token}"})

    def _login(self) -> None:
        now = self._clock.monotonic()
        if now - self._refused < LOGIN_PAUSE_S:
            raise SignalError("the user or the password was refused", LOGIN_PAUSE_S)
        self._token = None
        try:
            answer = webs.ask(self._web, self._clock, "/login", {}, {}, (self._user, self._password))
        except webs.Unauthorised:
            self._refused = now
            raise SignalError("the user or the password was refused", LOGIN_PAUSE_S) from None
        token = answer.get("token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Unbelievable("the answer of /login has no token")
        self._token, self._renew = token, now + TOKEN_S


def _point(row: object) -> tuple[float, float]:
    if not isinstance(row, Mapping):
        raise Unbelievable("a point of the answer does not have the documented form")
    value = row.get("value")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unbelievable(f"a value of the answer is not a number: {str(value)[:40]}")
    return _moment(row.get("point_time"), "point_time"), float(value)


def _moment(text: object, name: str) -> float:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        raise Unbelievable(f"a {name} of the answer is not a time: {str(text)[:40]}") from None
    if moment.tzinfo is None:
        raise Unbelievable(f"a {name} of the answer has no time zone: {str(text)[:40]}")
    return moment.timestamp()


def _period(meta: Mapping[str, Any], points: tuple[tuple[float, float], ...]) -> float:
    named = meta.get("data_point_period_seconds")
    if isinstance(named, (int, float)) and not isinstance(named, bool) and named >= 1:
        return float(named)
    if named is not None:
        raise Unbelievable(f"the period of the answer is {str(named)[:40]} s")
    steps = [after[0] - before[0] for before, after in pairwise(points)]
    if not steps:
        raise Unbelievable("the answer does not say how long its value holds")
    return min(steps)


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")
