"""Which signal a controller starts with: a trace on its command line, or else what the run file names.

Refuses what makes no sense together: options of a trace with a live signal, a speed at
which no reading is fresh for long enough, a policy that needs a forecast without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controller.signals.select import SelectedSignal, Surroundings, columns, open_signal, replayed
from curtail.config import RunConfig
from curtail.errors import UsageError
from curtail.grid.reading import UNITS
from curtail.grid.trace import load_trace

SLOWEST, FASTEST = 0.5, 1e6
"""Simulated seconds per real second. A step is a whole simulated second, and steps must come every few real ones."""


@dataclass(frozen=True, slots=True)
class SignalOptions:
    """What the command line of `controller start` says of the signal."""

    trace: Path | None = None  # None: the signal is the run file's
    unit: str | None = None  # of the trace's numbers
    speed: float = 1.0  # seconds of the trace per second
    forecast: bool = False  # the trace is its own forecast


def choose_signal(options: SignalOptions, config: RunConfig, around: Surroundings) -> SelectedSignal:
    """The trace of the command line, or else what the run file names.

    Raises: UsageError, ConfigError, AuthError, NotFound, DataError.
    """
    if not SLOWEST <= options.speed <= FASTEST:
        raise UsageError(f"--speed {options.speed:g} is not possible", f"use {SLOWEST:g} to {FASTEST:g}")
    if options.trace is None:
        if options.unit is not None:
            raise UsageError("--unit is the unit of a trace, and no --trace is given", "give both or neither")
        chosen = open_signal(config, around, ", or give --trace and --unit")
    else:
        if options.unit is None:
            raise UsageError("the unit of the trace is not given", f"add --unit {' or --unit '.join(UNITS)}")
        if options.unit not in UNITS:
            raise UsageError(f"--unit {options.unit} is not known", f"use one of {', '.join(UNITS)}")
        chosen = replayed(load_trace(options.trace, options.unit, columns(config).values()), config, options.forecast)
    if chosen.trace is None:
        _check_live(options, config, chosen)
    else:
        _check_replay(options, config, chosen.trace.period)
    return chosen


def has_perfect_forecast(options: SignalOptions, config: RunConfig, chosen: SelectedSignal) -> bool:
    """Is the signal a trace that is its own forecast?"""
    return chosen.trace is not None and _foresees(options, config)


def _foresees(options: SignalOptions, config: RunConfig) -> bool:
    return options.forecast if options.trace is not None else config.signal.forecast


def _check_replay(options: SignalOptions, config: RunConfig, period: float) -> None:
    # The oldest reading that is still fresh is one period old; a permit lives on what is left.
    permit = (config.policy.max_reading_age - period) / options.speed
    if permit < 2 * config.fleet.heartbeat:
        raise UsageError(
            f"at --speed {options.speed:g} a reading justifies only {max(0.0, permit):.2f} s of training, which is"
            f" less than two heartbeats of {config.fleet.heartbeat:g} s",
            "lower --speed or [fleet] heartbeat, or raise [policy] max_reading_age",
        )
    if not _foresees(options, config):
        _refuse_without_forecast(config, "add --forecast, or remove {key}")


def _check_live(options: SignalOptions, config: RunConfig, chosen: SelectedSignal) -> None:
    if options.speed != 1.0:
        raise UsageError(f"--speed {options.speed:g} is for a trace; {chosen.name} is live", "leave --speed out")
    if options.forecast:
        raise UsageError(f"--forecast is for a trace; {chosen.name} brings its own, if any", "leave --forecast out")
    if chosen.name == "constant":
        _refuse_without_forecast(config, "remove {key}")


def _refuse_without_forecast(config: RunConfig, remedy: str) -> None:
    """Raises: UsageError: a key of the policy does nothing without a forecast, and there is none."""
    policy = config.policy
    wanted = {"leave_lead": policy.leave_lead > 0, "deadline": policy.deadline, "budget_kg": policy.budget_kg}
    for key, given in wanted.items():
        if given:
            raise UsageError(f"[policy] {key} needs a forecast", remedy.format(key=key))
