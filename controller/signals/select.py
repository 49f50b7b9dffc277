"""Creates the source of readings that the run file names: built-in, trace or plug-in.

Checks the keys that each `[signal] source` needs before anything starts. A plug-in
is an entry point of the group `curtail.signals`. It creates a
`controller.signals.answer.Feed`, which is polled and validated like the built-in
ones. Averages are for display and accounting, never for decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.signals import credentials
from controller.signals.answer import Feed
from controller.signals.polling import PolledSource
from controller.signals.replay import ConstantSource, Source, TraceSource
from controller.signals.zero_guard import DoubtingSource
from curtail.config import RunConfig
from curtail.errors import ConfigError, CurtailError, UsageError
from curtail.grid.trace import Trace, load_trace
from curtail.system.clock import Clock

if TYPE_CHECKING:
    import httpx


GROUP = "curtail.signals"
"""Entry points: name of the source -> `controller.signals.answer.Plugin`."""

DECIDING = ("trace", "constant", "watttime")
AVERAGES = ("electricitymaps",)


@dataclass(frozen=True, slots=True)
class SelectedSignal:
    """The source of a run."""

    name: str
    source: Source
    trace: Trace | None = None  # the trace that is replayed; None: live, with this machine's clock
    polled: PolledSource | None = None  # must be started and stopped

    def start(self) -> None:
        """Start polling, if the source is polled."""
        if self.polled is not None:
            self.polled.start()

    def stop(self) -> None:
        """Stop polling."""
        if self.polled is not None:
            self.polled.stop()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The injected dependencies of a source; tests pass fakes."""

    clock: Clock
    environ: Mapping[str, str]
    transport: httpx.BaseTransport | None = None
    plugins: Callable[[], Mapping[str, Callable[[], Any]]] | None = None  # name -> loads the plug-in


def replayed(trace: Trace, config: RunConfig, foresight: bool) -> SelectedSignal:
    """A recorded trace as the signal."""
    return SelectedSignal("trace", TraceSource(trace, columns(config), foresight), trace)


def columns(config: RunConfig) -> dict[str, str]:
    """Region -> column of the trace."""
    return {region: section.column or region for region, section in config.regions.items()}


def names(config: RunConfig) -> dict[str, str]:
    """Region -> a live source's name for it."""
    return {region: section.signal or region for region, section in config.regions.items()}


def open_signal(config: RunConfig, around: Surroundings, or_else: str = "") -> SelectedSignal:
    """The source that the run file names; polling has not started yet.

    Args: or_else: alternatives to add to the remedy if the run file names no signal; begins with a comma.
    Raises: ConfigError: no such source, or a missing or a wrong key. AuthError: no credentials.
        NotFound, DataError: no trace, or a bad one. UsageError: the run file names no signal.
    """
    name = config.signal.source
    _check_keys(config, name)
    if name == "trace":
        if not config.signal.path:
            raise UsageError("the run file names no signal", f"add a section [signal] to it{or_else}")
        trace = load_trace(Path(config.signal.path), config.signal.unit, columns(config).values())
        return replayed(trace, config, config.signal.forecast)
    if name == "constant":
        assert config.signal.value is not None
        return SelectedSignal(name, ConstantSource(config.signal.value))
    feed = open_feed(config, around)
    polled = PolledSource(feed, names(config), config.signal.poll, config.policy.max_reading_age, around.clock)
    return SelectedSignal(name, DoubtingSource(polled, config.regions), polled=polled)


def open_feed(config: RunConfig, around: Surroundings) -> Feed:
    """The live source that the run file names, for direct calls without polling.

    Raises: ConfigError: there is none, or it cannot be used. AuthError: no credentials. NotFound.
    """
    name = config.signal.source
    return _watttime(config, around) if name == "watttime" else _plugin(config, name, around)


def _check_keys(config: RunConfig, name: str) -> None:
    section = config.signal
    if name in AVERAGES:
        raise ConfigError(
            f"[signal] source = {name!r}: its values are averages, which do not show curtailment",
            f"use one of {', '.join(DECIDING)} or a plug-in; averages are for accounting: average = {name!r}",
        )
    if section.average and section.average not in AVERAGES:
        raise ConfigError(f"[signal] average = {section.average!r} is not known", f"use {', '.join(AVERAGES)}")
    if name == "trace" and section.path and not section.unit:
        raise ConfigError("[signal] key unit is missing", 'add unit = "g/kWh" or unit = "lb/MWh"')
    if name == "constant" and section.value is None:
        raise ConfigError("[signal] key value is missing", 'add value = "50 g/kWh"')
    owners = {"path": "trace", "unit": "trace", "forecast": "trace", "value": "constant"}
    for key, owner in owners.items():
        if name != owner and getattr(section, key) not in ("", None, False):
            raise ConfigError(f"[signal] {key} belongs to source = {owner!r}, not to {name!r}", f"remove {key}")
    if section.options and name in DECIDING:
        raise ConfigError(f"[signal] options belong to a plug-in, not to {name!r}", "remove them")
    if section.url and name in ("trace", "constant"):
        raise ConfigError(f"[signal] url belongs to a live source, not to {name!r}", "remove url")


def _watttime(config: RunConfig, around: Surroundings) -> Feed:
    from controller.signals import http, watttime

    address = http.check_address(config.signal.url or watttime.ADDRESS, "[signal] url")
    credential = credentials.find(watttime.NAMES, around.environ, _file(config))
    return watttime.WattTime(http.open_web(address, around.transport), credential, around.clock, config.signal.horizon)


def open_averages(config: RunConfig, around: Surroundings) -> Any:
    """The source of averages that the run file names, `controller.signals.electricitymaps.ElectricityMaps`; else None.

    Raises: ConfigError, AuthError, NotFound.
    """
    if not config.signal.average:
        return None
    _check_keys(config, config.signal.source)
    from controller.signals import electricitymaps, http

    credential = credentials.find(electricitymaps.NAMES, around.environ, _file(config))
    return electricitymaps.ElectricityMaps(
        http.open_web(electricitymaps.ADDRESS, around.transport), credential, around.clock
    )


def _file(config: RunConfig) -> Path | None:
    return Path(config.signal.credentials) if config.signal.credentials else None


def installed() -> Mapping[str, Callable[[], Any]]:
    """The installed plug-ins: name -> function that loads it."""
    return {point.name: point.load for point in entry_points(group=GROUP)}


def _plugin(config: RunConfig, name: str, around: Surroundings) -> Feed:
    known = {key: load for key, load in (around.plugins or installed)().items() if key not in (*DECIDING, *AVERAGES)}
    if name not in known:
        listed = ", ".join([*DECIDING, *sorted(known)])
        raise ConfigError(
            f"[signal] source = {name!r} is not known", f"use one of {listed}, or install a plug-in of that name"
        )
    try:
        feed: Feed = known[name]()(names(config), dict(config.signal.options or {}))
    except CurtailError:
        raise
    except Exception as error:  # third-party code may raise anything; then the controller does not start
        raise ConfigError(
            f"the plug-in {name} cannot be used: {type(error).__name__}: {error}", "see the plug-in's documentation"
        ) from error
    if not callable(getattr(feed, "fetch", None)) or not isinstance(getattr(feed, "name", None), str):
        raise ConfigError(
            f"the plug-in {name} did not return a feed", "a feed must have a name and a method fetch(region, now)"
        )
    return feed
