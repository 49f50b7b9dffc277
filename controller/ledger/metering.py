"""Turns machines' energy reports into ledger energy, and counts each job's steps once; pure.

`SiteMeter`: a machine reports a running total of its meter. Between two reports its
power is assumed to be that of the last one. The next report contains the actual
energy, and the difference corrects the open row. So lost or repeated reports neither
lose energy nor count it twice. A restarted meter counts from zero. Time without
samples is filled from the run's model. Reports are in real seconds and J; the
ledger's clock may run faster, and its energy grows accordingly.

`Drawn`: the present draw of each region's sites together.

`JobProgress`: a job reports steps from the start of a round. Overlapped steps first count
as further steps of the old round, then as the first steps of the next. So the job's
total is what it committed before a round plus what it reports of that round, and only
the growth of the total is counted. Steps that are dropped and repeated count once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

from curtail.carbon.accounting import Draw
from curtail.wire import Power

JITTER_S = 3.0
"""Real seconds by which samples may lag behind the reports without counting as missing."""

CONSTANT, METER = "constant", "meter"
"""Methods: power from the run file because nothing is measured, and power that a machine reports without a counter."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Energy in J over some time, or power in W, and the part of the time that has samples."""

    joules: float = 0.0
    gpu: float = 0.0
    host: float = 0.0
    sampled: float = 0.0

    def plus(self, other: Flow, times: float = 1.0) -> Flow:
        """This flow plus `times` times `other`."""
        return Flow(
            self.joules + times * other.joules,
            self.gpu + times * other.gpu,
            self.host + times * other.host,
            self.sampled + times * other.sampled,
        )


@dataclass(slots=True)
class MachineMeter:
    """One machine: its last report, and the energy booked for it since the last samples."""

    power: Power
    rate: Flow | None = None  # power in W by the latest samples; None: none yet
    assumed: Flow = Flow()
    lag_s: float = 0.0  # of the ledger's clock, without samples and not filled
    steady: bool = False  # all of it was booked with this machine's own rate
    apart: bool = False  # and its GPUs separately


@dataclass(frozen=True, slots=True)
class Metered:
    """The present draw of a site."""

    watts: float
    method: str
    draw: Draw | None  # None: only the sum is known


@dataclass(slots=True)
class SiteMeter:
    """The meters of one site."""

    machines: dict[str, MachineMeter] = field(default_factory=dict)
    at: float | None = None  # time up to which it is booked
    measured: bool = False  # is the site booked with its machines' own rates?
    apart: bool = False  # are its GPUs booked separately?

    def copy(self) -> SiteMeter:
        """A copy of the present state."""
        return replace(self, machines={agent: replace(machine) for agent, machine in self.machines.items()})

    def book(self, reports: Mapping[str, Power | None], now: float, speed: float, model_w: float) -> Flow:
        """Process the machines' reports at `now`. Returns: the correction of the energy booked before.

        Args:
            reports: agent -> its latest report, for all machines of the site; reports may repeat.
            speed: seconds of the ledger's clock per real second.
            model_w: the run model's power of the whole site up to now, W.
        """
        seconds = 0.0 if self.at is None else max(0.0, now - self.at)
        self.at = now if self.at is None else max(now, self.at)
        share = model_w / max(1, len(reports))
        for machine in self.machines.values():
            machine.assumed = machine.assumed.plus(machine.rate or Flow(), seconds)
            machine.lag_s += seconds
            if seconds > 0:
                machine.steady, machine.apart = machine.steady and self.measured, machine.apart and self.apart
        total = Flow()
        for agent, power in reports.items():
            known = self.machines.get(agent)
            if power is None:
                self.machines.pop(agent, None)
            elif known is None:
                self.machines[agent] = MachineMeter(power)
            elif power is not known.power:
                total = total.plus(_report(known, power, speed, share))
        for agent in [agent for agent in self.machines if agent not in reports]:
            del self.machines[agent]
        return replace(total, sampled=total.sampled / max(1, len(reports)))

    def present(self, expected: int, model_w: float, heard: bool) -> Metered:
        """The site's present draw: measured if all its machines are and it is not silent, else from the model."""
        machines = [(machine.power, machine.rate) for machine in self.machines.values() if machine.rate is not None]
        complete = heard and len(machines) == len(self.machines) >= max(1, expected)
        gpu = _sum([None if power.gpu_joules is None else rate.gpu for power, rate in machines]) if complete else None
        host = _sum([None if power.host_joules is None else rate.host for power, rate in machines])
        self.apart = gpu is not None
        self.measured = complete and all(power.joules is not None for power, _ in machines)
        if not self.measured:
            return Metered(model_w, CONSTANT, Draw(gpu_w=gpu) if self.apart else None)
        methods = {word for power, _ in machines for word in power.method.split("+")}
        watts, sampled = sum(rate.joules for _, rate in machines), sum(rate.sampled for _, rate in machines)
        return Metered(watts, "+".join(sorted(methods)), Draw(gpu, host, sampled / len(machines)))


def _report(machine: MachineMeter, power: Power, speed: float, share: float) -> Flow:
    """Process a machine's new report. Returns: its difference to the energy booked since the last samples."""
    spent = difference(machine.power, power)
    machine.power = power
    if spent is None:
        machine.assumed, machine.lag_s, machine.steady, machine.apart = Flow(), 0.0, False, False
        return Flow()
    sampled, allowed = spent.sampled * speed, JITTER_S * speed
    if sampled <= 0.0 and machine.lag_s <= allowed:
        return Flow()  # no new samples since the last report
    machine.lag_s = max(-allowed, machine.lag_s - sampled)
    filled = machine.lag_s if machine.lag_s > allowed else 0.0
    machine.lag_s -= filled
    if spent.sampled > 0.0:
        machine.rate = Flow(spent.joules / spent.sampled, spent.gpu / spent.sampled, spent.host / spent.sampled, 1.0)
    joules = spent.joules * speed + share * filled - machine.assumed.joules
    gpu, host = spent.gpu * speed - machine.assumed.gpu, spent.host * speed - machine.assumed.host
    steady, apart = machine.steady, machine.apart
    machine.assumed = Flow()
    machine.steady = machine.apart = machine.rate is not None
    return Flow(
        joules if steady else 0.0, gpu if apart else 0.0, host if steady else 0.0, -filled if steady else 0.0
    )  # fmt: skip


def difference(before: Power, after: Power) -> Flow | None:
    """The energy between two reports; a restarted meter has counted from zero. None: the reports are inconsistent."""
    old: tuple[float | None, ...] = (before.joules, before.gpu_joules, before.host_joules)
    new, since = (after.joules, after.gpu_joules, after.host_joules), before.seconds
    if after.meter != before.meter:
        old, since = tuple(None if value is None else 0.0 for value in new), 0.0
    if after.seconds < since or any((a is None) != (b is None) for a, b in zip(old, new, strict=True)):
        return None
    parts = [(b or 0.0) - (a or 0.0) for a, b in zip(old, new, strict=True)]
    return None if any(part < 0 for part in parts) else Flow(parts[0], parts[1], parts[2], after.seconds - since)


def _sum(parts: Sequence[float | None]) -> float | None:
    """The sum of `parts`; None if one is unknown or there are none."""
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


class Drawn:
    """The present draw of each site in W, and the sums by region.

    When a site changes, the sum is recomputed from all sites of the region, so it
    does not accumulate rounding errors. One thread writes; any thread may call `of`.
    """

    def __init__(self) -> None:
        self._region_of: dict[str, str] = {}
        self._sites: dict[str, dict[str, float]] = {}
        self._sums: dict[str, float] = {}

    def put(self, site: str, region: str, watts: float) -> None:
        """Set the present draw of a site in a region."""
        known = self._region_of.get(site)
        if known == region and self._sites[region][site] == watts:
            return
        if known is not None and known != region:
            self.drop(site)
        self._region_of[site] = region
        self._sites.setdefault(region, {})[site] = watts
        self._sum(region)

    def drop(self, site: str) -> None:
        """Remove a site."""
        region = self._region_of.pop(site, None)
        if region is not None:
            del self._sites[region][site]
            self._sum(region)

    def of(self, region: str) -> float:
        """Total draw of the region's sites in W; 0.0 without sites."""
        return self._sums.get(region, 0.0)

    def _sum(self, region: str) -> None:
        self._sums[region] = math.fsum(self._sites[region].values())


@dataclass(slots=True)
class JobProgress:
    """The counted steps and tokens of one job."""

    round: int = 0  # of its latest commit
    steps_before: int = 0  # committed in rounds before that one
    tokens_before: int = 0
    steps_committed: int = 0  # committed up to and including that one
    tokens_committed: int = 0
    steps: int = 0  # counted
    tokens: int = 0

    def said(self, number: int, steps: int, tokens: int) -> tuple[int, int]:
        """The job reports these totals of round `number`. Returns: by how much the counts grow."""
        if number < self.round:
            return 0, 0
        if number == self.round:
            return self._grow(self.steps_before + steps, self.tokens_before + tokens)
        return self._grow(self.steps_committed + steps, self.tokens_committed + tokens)

    def committed(self, number: int, steps: int, tokens: int) -> tuple[int, int]:
        """The job committed these totals of round `number`. Returns: by how much the counts grow; 0 for a repeat."""
        if number <= self.round:
            return 0, 0
        self.round = number
        self.steps_before, self.tokens_before = self.steps_committed, self.tokens_committed
        self.steps_committed += steps
        self.tokens_committed += tokens
        return self._grow(self.steps_committed, self.tokens_committed)

    def _grow(self, steps: int, tokens: int) -> tuple[int, int]:
        more = max(0, steps - self.steps), max(0, tokens - self.tokens)
        self.steps, self.tokens = self.steps + more[0], self.tokens + more[1]
        return more

    def kept(self) -> list[int]:
        """The state as the store keeps it."""
        return list(astuple(self))

    @staticmethod
    def of(kept: Sequence[int]) -> JobProgress:
        """The inverse of `kept`."""
        return JobProgress(*kept)
