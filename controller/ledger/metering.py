"""From the energy counters of a site's machines to what a ledger row adds up.

A machine reports what its meter has counted since it was begun. Between two
reports its power is taken to be what it was in the last one; the next report says
what it truly drew, and the difference corrects the open row. So no energy is
counted twice or lost, whatever reports are lost or repeated. A meter that was
begun anew counts from zero; time without samples is filled from the run's model.
Reports are in real seconds and J; the ledger's clock may run faster, and its
energy with it. No clock, no store.

What the sites of each region draw together, kept up as single sites change. No clock, no store.

How much a job has trained, from what it says of its rounds: no step counts twice.

A job counts steps from the beginning of a round, and those made ahead while a
contribution travels first as further ones of the old round, then as the first ones of
the next. So its count is what it committed before a round, and what it says of that
round; what grows is counted. Steps that are dropped and made again count once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

from curtail.carbon.accounting import Draw
from curtail.wire import Power

JITTER_S = 3.0
"""Real seconds by which the samples may lag behind the reports without being taken as missing."""

CONSTANT, METER = "constant", "meter"
"""Methods: power by the run file, because nothing is measured; and power that a machine tells without a counter."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Energy in J over some time, or power in W; and for how much of the time there are samples."""

    joules: float = 0.0
    gpu: float = 0.0
    host: float = 0.0
    sampled: float = 0.0

    def plus(self, other: Flow, times: float = 1.0) -> Flow:
        """The sum, `other` counted `times` times."""
        return Flow(
            self.joules + times * other.joules,
            self.gpu + times * other.gpu,
            self.host + times * other.host,
            self.sampled + times * other.sampled,
        )


@dataclass(slots=True)
class Machine:
    """One machine: its last report, and what was booked for it since the last samples."""

    power: Power
    rate: Flow | None = None  # W by the latest samples; None: there are none yet
    assumed: Flow = Flow()
    lag_s: float = 0.0  # of the ledger's clock, without samples and not filled
    steady: bool = False  # all of it was booked by this machine's own rate
    apart: bool = False  # and its GPUs apart


@dataclass(frozen=True, slots=True)
class Metered:
    """What a site draws now."""

    watts: float
    method: str
    draw: Draw | None  # None: nothing beside the sum is known


@dataclass(slots=True)
class SiteMeter:
    """The meters of one site."""

    machines: dict[str, Machine] = field(default_factory=dict)
    at: float | None = None  # up to when it is booked
    measured: bool = False  # is the site booked by its machines' own rates?
    apart: bool = False  # are its GPUs booked apart?

    def copy(self) -> SiteMeter:
        """All of it as it is now."""
        return replace(self, machines={agent: replace(machine) for agent, machine in self.machines.items()})

    def book(self, reports: Mapping[str, Power | None], now: float, speed: float, model_w: float) -> Flow:
        """Take in what the machines say at `now`; the correction of what was booked before.

        Args:
            reports: agent -> its latest report, the machines of the site; an old one may come again.
            speed: seconds of the ledger's clock in a real one.
            model_w: what the run's model gave the whole site up to now, W.
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
                self.machines[agent] = Machine(power)
            elif power is not known.power:
                total = total.plus(_report(known, power, speed, share))
        for agent in [agent for agent in self.machines if agent not in reports]:
            del self.machines[agent]
        return replace(total, sampled=total.sampled / max(1, len(reports)))

    def present(self, expected: int, model_w: float, heard: bool) -> Metered:
        """What the site draws now: measured if all of its machines are and it is heard from, else by the model."""
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


def _report(machine: Machine, power: Power, speed: float, share: float) -> Flow:
    """Take in a new report of a machine; by how much it differs from what was booked since the last samples."""
    spent = difference(machine.power, power)
    machine.power = power
    if spent is None:
        machine.assumed, machine.lag_s, machine.steady, machine.apart = Flow(), 0.0, False, False
        return Flow()
    sampled, allowed = spent.sampled * speed, JITTER_S * speed
    if sampled <= 0.0 and machine.lag_s <= allowed:
        return Flow()  # asked again too soon: nothing new
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
    """What was counted between two reports; a meter begun anew has counted from zero. None: it makes no sense."""
    old: tuple[float | None, ...] = (before.joules, before.gpu_joules, before.host_joules)
    new, since = (after.joules, after.gpu_joules, after.host_joules), before.seconds
    if after.meter != before.meter:
        old, since = tuple(None if value is None else 0.0 for value in new), 0.0
    if after.seconds < since or any((a is None) != (b is None) for a, b in zip(old, new, strict=True)):
        return None
    parts = [(b or 0.0) - (a or 0.0) for a, b in zip(old, new, strict=True)]
    return None if any(part < 0 for part in parts) else Flow(parts[0], parts[1], parts[2], after.seconds - since)


def _sum(parts: Sequence[float | None]) -> float | None:
    """The sum of what is known, None if a part is not or there is none."""
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


class Drawn:
    """Present draw in W by site, and its sums by region.

    A sum is made anew from its sites when one of them changes, never added to: so
    it has no drift, and costs nothing while nobody changes. One thread writes;
    `of` may be asked by any.
    """

    def __init__(self) -> None:
        self._region_of: dict[str, str] = {}
        self._sites: dict[str, dict[str, float]] = {}
        self._sums: dict[str, float] = {}

    def put(self, site: str, region: str, watts: float) -> None:
        """The site draws so much now, in this region."""
        known = self._region_of.get(site)
        if known == region and self._sites[region][site] == watts:
            return
        if known is not None and known != region:
            self.drop(site)
        self._region_of[site] = region
        self._sites.setdefault(region, {})[site] = watts
        self._sum(region)

    def drop(self, site: str) -> None:
        """The site is gone."""
        region = self._region_of.pop(site, None)
        if region is not None:
            del self._sites[region][site]
            self._sum(region)

    def of(self, region: str) -> float:
        """W that the region's sites draw together; 0.0 without sites."""
        return self._sums.get(region, 0.0)

    def _sum(self, region: str) -> None:
        self._sums[region] = math.fsum(self._sites[region].values())


@dataclass(slots=True)
class Trained:
    """Steps and tokens of one job."""

    round: int = 0  # of its latest commit
    steps_before: int = 0  # committed in earlier rounds than that one
    tokens_before: int = 0
    steps_committed: int = 0  # with that one
    tokens_committed: int = 0
    steps: int = 0  # counted
    tokens: int = 0

    def said(self, number: int, steps: int, tokens: int) -> tuple[int, int]:
        """The job has made so many in round `number`; by how much the count grows."""
        if number < self.round:
            return 0, 0
        if number == self.round:
            return self._grow(self.steps_before + steps, self.tokens_before + tokens)
        return self._grow(self.steps_committed + steps, self.tokens_committed + tokens)

    def committed(self, number: int, steps: int, tokens: int) -> tuple[int, int]:
        """It committed so many of round `number`; by how much the count grows. A repeat is passed over."""
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
        """What the store keeps of it."""
        return list(astuple(self))

    @staticmethod
    def of(kept: Sequence[int]) -> Trained:
        """The count that was kept."""
        return Trained(*kept)
