"""Counterfactuals: carbon of the same training under other schedules, from the run's own readings.

Each site alone without waiting; the best of these; all sites together without waiting;
and the lower bound, the least that any schedule could have emitted in the same time
(`curtail.carbon.lower_bound`). Every site trains at the speed and power it had in the
run, and starts, exchanges and waiting cost nothing. So all of these are low estimates.
Pure functions. Units: seconds, W at the grid (with PUE), gCO2/kWh, kg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curtail.carbon.accounting import ATTRIBUTED, Entry
from curtail.carbon.lower_bound import Cell, oracle_kg
from curtail.config import RunConfig
from curtail.grid.reading import JOULES_PER_KWH

Known = Sequence[tuple[float, float]]
"""Known readings as (point time, gCO2/kWh), ascending; each holds until the next."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A site's training in the run."""

    site: str
    region: str
    watts: float  # mean power during training, with PUE
    train_s: float
    tokens: int  # trained by the site; 0: unknown

    @property
    def speed(self) -> float:
        """Tokens per second of training."""
        return self.tokens / self.train_s if self.train_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Alone:
    """The counterfactual in which one site does all of the training, from the start of the run."""

    site: str
    kg: float
    hours: float
    known_share: float  # share of that time with readings; after it the last reading holds


@dataclass(frozen=True, slots=True)
class Counterfactuals:
    """All counterfactuals of one run."""

    alone: tuple[Alone, ...]
    best: Alone | None  # the one with the least carbon
    unconstrained_kg: float | None  # all sites together without waiting
    unconstrained_h: float | None
    oracle_kg: float | None  # lower bound in the run's own time; None: the readings do not cover the work
    efficiency_pct: float | None  # the lower bound as a percentage of the run's own kg (attributed, with PUE)


def trained(entries: Sequence[Entry], config: RunConfig) -> list[Trained]:
    """Each site's training; its power is the mean while training, or the configured power if it never trained."""
    sites: dict[str, list[Entry]] = {}
    for entry in entries:
        sites.setdefault(entry.site, []).append(entry)
    out = []
    for site, rows in sites.items():
        region = rows[-1].region
        if region not in config.regions:
            continue
        training = [row for row in rows if row.phase == "train"]
        seconds = sum(row.t1 - row.t0 for row in training)
        joules = sum(row.watts * row.pue * (row.t1 - row.t0) for row in training)
        watts = joules / seconds if seconds > 0 else config.watts(region, "train") * config.regions[region].pue
        tokens = sum(row.detail.tokens for row in rows if row.detail is not None)
        out.append(Trained(site, region, watts, seconds, tokens))
    return out


def counterfactuals(
    sites: Sequence[Trained],
    readings: Mapping[str, Known],
    start: float,
    end: float,
    caps: Mapping[str, float],
    attributed_kg: float,
) -> Counterfactuals:
    """Compute all counterfactuals.

    Args:
        readings: of each region.
        start: of the run. end: of its training; the readings reach this far.
        caps: region -> threshold in gCO2/kWh for the lower bound, as in the run; dropped if the work does not fit.
        attributed_kg: the run's own emissions, with PUE.
    """
    usable = [site for site in sites if readings.get(site.region)]
    speeds = _speeds(usable)
    work = sum(site.train_s * speeds[site.site] for site in usable)
    if work <= 0 or len(usable) < len(sites):
        return Counterfactuals((), None, None, None, None, None)
    alone = tuple(_alone(site, work / speeds[site.site], readings[site.region], start, end) for site in usable)
    together = work / sum(speeds.values())
    kg = sum(_held_kg(readings[site.region], site.watts, start, start + together) for site in usable)
    least = oracle_kg(_cells(usable, speeds, readings, start, end, caps), work, 1.0)
    if least is None:
        least = oracle_kg(_cells(usable, speeds, readings, start, end, {}), work, 1.0)
    efficiency = None if least is None or attributed_kg <= 0 else 100.0 * least / attributed_kg
    return Counterfactuals(
        alone, min(alone, key=lambda one: one.kg), kg, together / 3600.0, least, efficiency
    )  # fmt: skip


def _speeds(sites: Sequence[Trained]) -> dict[str, float]:
    """Work of each site per second: in tokens if every site that trained has a count, otherwise in seconds."""
    busy = [site for site in sites if site.train_s > 0]
    if not busy or any(site.tokens <= 0 for site in busy):
        return {site.site: 1.0 for site in sites}
    mean = sum(site.tokens for site in busy) / sum(site.train_s for site in busy)
    return {site.site: site.speed or mean for site in sites}


def _alone(site: Trained, seconds: float, known: Known, start: float, end: float) -> Alone:
    kg = _held_kg(known, site.watts, start, start + seconds)
    return Alone(site.site, kg, seconds / 3600.0, min(1.0, max(0.0, end - start) / seconds))


def _held_kg(known: Known, watts: float, start: float, stop: float) -> float:
    """kgCO2 of constant power in [start, stop); the first reading also holds before it, the last one after it."""
    grams = 0.0
    for begin, end, mci in _steps(known, start, stop):
        grams += watts * (end - begin) / JOULES_PER_KWH * mci
    return grams / 1000.0


def _steps(known: Known, start: float, stop: float) -> list[tuple[float, float, float]]:
    """(from, to, gCO2/kWh) of [start, stop); negative values count as 0."""
    out = []
    for index, (point, mci) in enumerate(known):
        begin = start if index == 0 else max(start, point)
        end = stop if index + 1 == len(known) else min(stop, known[index + 1][0])
        if end > begin:
            out.append((begin, end, max(0.0, mci)))
    return out


def _cells(
    sites: Sequence[Trained], speeds: Mapping[str, float], readings: Mapping[str, Known],
    start: float, end: float, caps: Mapping[str, float],
) -> list[Cell]:  # fmt: skip
    """One cell per site and reading: the work possible in that time, and W x g/kWh per unit of work."""
    return [
        ((until - begin) * speeds[site.site], mci * site.watts / speeds[site.site])
        for site in sites
        for begin, until, mci in _steps(readings[site.region], start, end)
        if mci < caps.get(site.region, float("inf"))
    ]


def training_end(entries: Sequence[Entry], start: float) -> float:
    """The end of the last attributed row; `start` if there is none."""
    return max((entry.t1 for entry in entries if entry.phase in ATTRIBUTED), default=start)
