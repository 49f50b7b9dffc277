"""The sections about when a site trains, and what is booked: [policy], [signal], [fleet], [accounting]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from curtail.config.quantities import QUANTITY, number, parse_quantity, quantity
from curtail.costs import SHORTEST_WINDOW_S
from curtail.errors import ConfigError
from curtail.reading import UNITS


@dataclass(frozen=True, slots=True)
class PolicySection:
    """[policy]"""

    threshold: float = quantity("intensity", 100.0, low=None)
    max_reading_age: float = quantity("duration", 600.0, low=1.0)  # controller clock
    enter_dwell: float = quantity("duration", 0.0)  # controller clock
    leave_lead: float = quantity("duration", 0.0)  # controller clock; needs a forecast
    permit: float = quantity("duration", 15.0, low=0.5)  # wall time a permit lives without renewal
    start_age: float | None = quantity("duration", None)  # controller clock; default: half of max_reading_age
    min_window: float = quantity("duration", SHORTEST_WINDOW_S)  # controller clock; needs a forecast
    leave_above: float | None = quantity("intensity", None, low=None)  # default: at the threshold
    deadline: str = ""  # a moment with its zone, or a duration from the run's start; `deadline_at`
    budget_kg: float | None = number(None, low=0.0)  # most kgCO2 attributed to the run
    safety: float | None = number(None, low=1.0)  # factor on the work; default: by how sure the forecast is
    most_sites: int | None = number(None, low=1)  # more than these are of no use
    start: float = quantity("duration", 100.0)  # controller clock; permit to first step, until it is measured
    stop: float = quantity("duration", 15.0)  # controller clock; end of the permit to released GPUs
    sync: float = quantity("duration", 30.0)  # controller clock; of a federated round without training
    tokens_per_s: float | None = number(None, low=0.0)  # wall time; of one site that trains, until it is measured

    @property
    def oldest_start(self) -> float:
        """Seconds of age beyond which a reading starts no site: one period, of which two make it stale."""
        return self.max_reading_age / 2 if self.start_age is None else self.start_age

    def deadline_at(self, started: float) -> float | None:
        """The deadline on the controller's clock, None without one.

        Args: started: of the run. Raises: ConfigError: it is neither a moment nor a duration.
        """
        if not self.deadline:
            return None
        if QUANTITY.match(self.deadline):
            return started + parse_quantity("duration", self.deadline, "[policy] deadline")
        try:
            moment = datetime.fromisoformat(self.deadline)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise ConfigError(
                f"[policy] deadline = {self.deadline!r} is no deadline",
                'write a moment with its zone, "2026-03-01T08:00+00:00", or a time after the start, "14.6 h"',
            )
        return moment.timestamp()


@dataclass(frozen=True, slots=True)
class SignalSection:
    """[signal]"""

    source: str = "trace"  # trace, constant, watttime, or a plug-in's name; `controller.signals.choose` knows which
    path: str = ""  # of the trace; relative to the run file
    unit: str = field(default="", metadata={"choices": UNITS})  # of the trace
    forecast: bool = False  # the trace's own future is the forecast
    value: float | None = quantity("intensity", None, low=None)  # of the constant
    poll: float = quantity("duration", 30.0, low=1.0)  # wall time between two answers of a live source
    horizon: float = quantity("duration", 86400.0)  # of a live source's forecast
    credentials: str = ""  # file with names and passwords; relative to the run file
    url: str = ""  # of the source; default: its own
    average: str = ""  # a source of averages, for accounts only
    options: Mapping[str, Any] | None = None  # of a plug-in


@dataclass(frozen=True, slots=True)
class FleetSection:
    """[fleet]"""

    heartbeat: float = quantity("duration", 2.0, low=0.05, high=1e6)  # wall time
    lost_after: float = quantity("duration", 15.0, low=0.2)  # wall time without a heartbeat


@dataclass(frozen=True, slots=True)
class AccountingSection:
    """[accounting]: what the full boundary of the ledger adds; docs/carbon-accounting.md gives the sources."""

    network_kwh_per_gb: float = number(0.06, low=0.0, high=100.0)  # of what sites send and fetch
    controller_power: float = quantity("power", 20.0)  # of the controller's machine, the whole run long
    intensity: float = quantity("intensity", 480.0)  # of network and controller, wherever they are
    embodied_g_per_site_hour: float = number(29.0, low=0.0, high=1e6)  # making of a site's machines, per hour of use
