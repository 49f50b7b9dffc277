"""Measures the power of this machine's devices, in watts.

A meter reports the mean power since its last call, the method, and the devices
that it covers. An unreadable value is None, never a guess; the controller then
uses the run file's model of the site. A heartbeat reports the whole machine, so
`watts` is None while some part is not measured; `measure` returns the measured
part anyway. Energy counters are preferred to instantaneous power, because they
miss nothing between two calls. `power` is a running total since the meter was
created, so that lost heartbeats lose no energy. Seconds, W, J.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.energy_counters import NvmlCounter, RaplCounter
from curtail.system.clock import Clock, SystemClock
from curtail.wire import Power

SHORTEST_S, LONGEST_S = 0.5, 600.0
"""Shortest and longest interval of a measurement. GPUs update their counters only every 20 to 100 ms. RAPL wraps
around after some minutes at full power, and a second wrap-around would go unnoticed."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Mean power over an interval."""

    watts: float
    method: str  # nvml-total-energy, nvml-power-integrated, rapl, constant, or several with +
    covers: tuple[str, ...]  # the devices that are included
    lacks: tuple[str, ...] = ()  # the devices that are known to be missing

    @property
    def whole(self) -> bool:
        """Does it cover the whole machine?"""
        return not self.lacks


class PowerMeter(Protocol):
    """Measures the power of the machine."""

    def watts(self) -> float | None:
        """Mean power of this machine since the last call, in W; None if it is not measured."""
        ...

    def power(self) -> Power | None:
        """The total measured up to the last call of `watts`; None if there is no counter."""
        ...


class Counter(Protocol):
    """The energy counter of some devices."""

    method: str
    covers: tuple[str, ...]
    part: str  # of the machine: gpu, host, or whole

    def joules(self) -> float:
        """Energy in J since an arbitrary point; monotonic. Raises: OSError: it cannot be read now."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantMeter:
    """A fixed power; None by default: not measured."""

    value: float | None = None
    note: str = "power is not measured"

    def watts(self) -> float | None:
        """The fixed power, in W."""
        return self.value

    def measure(self) -> Measurement | None:
        """The fixed power as a measurement."""
        return None if self.value is None else Measurement(self.value, "constant", ("machine",))

    def power(self) -> Power | None:
        """None: there is no counter."""
        return None


class CounterMeter:
    """Mean power from the difference of energy counters.

    Args:
        lacks: devices that are known to be missing.
        constant: (W, label) of devices that have no counter.
        note: says to the user what is measured and what is not.
    """

    def __init__(
        self, counters: Sequence[Counter], clock: Clock, lacks: tuple[str, ...] = (),
        constant: tuple[float, str] | None = None, note: str = "",
    ) -> None:  # fmt: skip
        self._counters = tuple(counters)
        self._clock = clock
        self._lacks = lacks
        self._constant = constant
        self._before: tuple[float, list[float]] | None = None
        self._latest: Measurement | None = None
        self._meter = secrets.token_hex(8)
        self._seconds = 0.0
        self._summed: dict[str, float] = {}  # part of the machine -> J
        self.note = note

    def watts(self) -> float | None:
        """Mean power of the machine since the last call; None at the first call or while a part is not measured."""
        found = self.measure()
        return found.watts if found is not None and found.whole else None

    def measure(self) -> Measurement | None:
        """Mean power of the covered devices; None at the first call and after a failure."""
        now = self._clock.monotonic()
        if self._before is not None and now - self._before[0] < SHORTEST_S:
            return self._latest
        before, self._before, self._latest = self._before, None, None
        try:
            joules = [counter.joules() for counter in self._counters]
        except OSError:
            return None
        self._before = (now, joules)
        if before is None or now - before[0] > LONGEST_S:
            return None
        spent = [after - earlier for after, earlier in zip(joules, before[1], strict=True)]
        if any(value < 0.0 for value in spent):  # a driver was reloaded
            return None
        self._sum_up(spent, now - before[0])
        watts = sum(spent) / (now - before[0])
        methods, covers = [c.method for c in self._counters], [name for c in self._counters for name in c.covers]
        if self._constant is not None:
            watts += self._constant[0]
            methods.append("constant")
            covers.append(self._constant[1])
        self._latest = Measurement(watts, "+".join(dict.fromkeys(methods)), tuple(covers), self._lacks)
        return self._latest

    def power(self) -> Power:
        """The total measured up to the last call of `watts` or `measure`."""
        methods = [*(counter.method for counter in self._counters), *(["constant"] if self._constant else [])]
        parts = {counter.part for counter in self._counters} | ({"host"} if self._constant else set())
        return Power(
            self._meter, "+".join(dict.fromkeys(methods)), self._seconds,
            None if self._lacks else sum(self._summed.values()),
            *(self._summed.get(part, 0.0) if part in parts else None for part in ("gpu", "host")),
        )  # fmt: skip

    def _sum_up(self, spent: Sequence[float], seconds: float) -> None:
        self._seconds += seconds
        for counter, joules in zip(self._counters, spent, strict=True):
            self._summed[counter.part] = self._summed.get(counter.part, 0.0) + joules
        if self._constant is not None:
            self._summed["host"] = self._summed.get("host", 0.0) + self._constant[0] * seconds


def choose_meter(
    clock: Clock | None = None, environ: Mapping[str, str] = os.environ, host_w: float | None = None,
    load: Callable[[], Any] = lambda: importlib.import_module("pynvml"),
    rapl: Path = Path("/sys/class/powercap"),
) -> ConstantMeter | CounterMeter:  # fmt: skip
    """The best meter for this machine; its `note` says which one.

    NVML measures the GPUs, RAPL the host; without RAPL the host counts as `host_w`. A machine
    without measurable GPUs is not measured; the controller then uses the run file's model.

    Args: host_w: W of everything except the GPUs, for a machine on which RAPL cannot be read.
    """
    clock = clock or SystemClock()
    try:
        gpus = NvmlCounter.open(load, environ, clock)
    except OSError as error:
        return ConstantMeter(None, f"power is not measured: {error}")
    try:
        host = RaplCounter.open(rapl, gpus.share)
    except OSError as error:
        if host_w is not None:
            note = f"power: {gpus.method} and a constant {host_w:.0f} W for the host"
            return CounterMeter([gpus], clock, constant=(host_w * gpus.share, "host"), note=note)
        note = f"only the power of the GPUs can be measured, so the run file's figures are used: {error}"
        return CounterMeter([gpus], clock, lacks=("host",), note=note)
    return CounterMeter([gpus, host], clock, note=f"power: {gpus.method} and rapl of {', '.join(host.covers)}")
