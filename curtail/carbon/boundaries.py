"""A run's energy and carbon within three system boundaries, carbon per token, and sensitivities.

*Attributed*: energy that the machines drew for the job, without PUE (the boundary of
the published prototype). *Reserved*: plus energy drawn while paused or switched off.
*Full*: plus PUE overhead, network, controller and embodied carbon of the hardware.
All are sums over ledger rows, with a few factors from the run file. Pure functions.
Units: kWh, kg, s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from curtail.carbon.accounting import ATTRIBUTED, Entry
from curtail.config import AccountingSection
from curtail.grid.reading import JOULES_PER_KWH

Readings = Sequence[tuple[float, float | None]]
"""(point time, gCO2/kWh or None), ascending; each holds until the next."""

TOKENS = 1e9
"""The functional unit R of SCI = (E x I + M) / R."""

ZERO_G = 50.0
"""gCO2/kWh that replaces readings of exactly 0 in the sensitivity analysis, in case those zeros are wrong."""


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Energy and consequential carbon within each boundary; energy with unknown MCI has no kg."""

    attributed_kwh: float  # at the machines, from the grid
    attributed_kg: float
    reserved_kwh: float
    reserved_kg: float
    pue_kwh: float  # PUE overhead on the reserved energy
    pue_kg: float
    network_kwh: float
    network_kg: float
    controller_kwh: float
    controller_kg: float
    site_hours: float  # of all sites in all phases
    embodied_kg: float
    unknown_kwh: float  # of the reserved energy with PUE: drawn while the MCI was unknown

    @property
    def full_kwh(self) -> float:
        """All energy."""
        return self.reserved_kwh + self.pue_kwh + self.network_kwh + self.controller_kwh

    @property
    def full_kg(self) -> float:
        """All carbon, including embodied carbon."""
        return self.reserved_kg + self.pue_kg + self.network_kg + self.controller_kg + self.embodied_kg


def boundaries(entries: Iterable[Entry], seconds: float, accounting: AccountingSection) -> Boundaries:
    """The three boundaries of the rows.

    Args: seconds: from the start of the run to now, in which the controller draws power.
    """
    kwh, kg = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    pue_kwh = pue_kg = unknown = site_s = 0.0
    sent = 0
    for entry in entries:
        attributed, grams = entry.phase in ATTRIBUTED, entry.kg or 0.0
        kwh[attributed] += entry.kwh / entry.pue
        kg[attributed] += grams / entry.pue
        pue_kwh += entry.kwh - entry.kwh / entry.pue
        pue_kg += grams - grams / entry.pue
        unknown += entry.kwh if entry.kg is None else 0.0
        site_s += entry.t1 - entry.t0
        sent += entry.detail.network_bytes if entry.detail is not None else 0
    network = sent / 1e9 * accounting.network_kwh_per_gb
    controller = accounting.controller_power * seconds / JOULES_PER_KWH
    return Boundaries(
        attributed_kwh=kwh[True], attributed_kg=kg[True],
        reserved_kwh=kwh[True] + kwh[False], reserved_kg=kg[True] + kg[False],
        pue_kwh=pue_kwh, pue_kg=pue_kg,
        network_kwh=network, network_kg=network * accounting.intensity / 1000.0,
        controller_kwh=controller, controller_kg=controller * accounting.intensity / 1000.0,
        site_hours=site_s / 3600.0, embodied_kg=site_s / 3600.0 * accounting.embodied_g_per_site_hour / 1000.0,
        unknown_kwh=unknown,
    )  # fmt: skip


def per_tokens(kg: float, tokens: int) -> float | None:
    """kg per 1e9 tokens: the SCI if `kg` is of the full boundary; None if nothing was trained."""
    return kg / (tokens / TOKENS) if tokens > 0 else None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """kg of the same rows under other assumptions, without the rows whose MCI is unknown."""

    step_kg: float  # as booked: each value holds until the next
    linear_kg: float  # linear interpolation between readings, as in the prototype's notebook
    plus_20_kg: float
    minus_20_kg: float
    zeros_at_50_kg: float  # readings of exactly 0 taken as 50 g/kWh


def sensitivity(entries: Sequence[Entry], readings: Mapping[str, Readings]) -> Sensitivity:
    """Recompute the rows' carbon under other assumptions.

    Args: readings: by region.
    """
    known = [entry for entry in entries if entry.kg is not None]
    curves = {region: _Curve(points) for region, points in readings.items()}
    step = sum(entry.kg or 0.0 for entry in known)
    linear = 0.0
    for entry in known:
        curve = curves.get(entry.region)
        between = None if curve is None else curve.mean(entry.t0, entry.t1)
        linear += (entry.kg or 0.0) if between is None else entry.kwh * between / 1000.0
    zeros = sum(entry.kwh * ZERO_G / 1000.0 if entry.mci == 0.0 else entry.kg or 0.0 for entry in known)
    return Sensitivity(step, linear, 1.2 * step, 0.8 * step, zeros)


class _Curve:
    """Linear interpolation between known readings, constant outside them; negative values count as 0."""

    def __init__(self, readings: Readings) -> None:
        points = [(at, max(0.0, mci)) for at, mci in readings if mci is not None]
        self._at = [at for at, _ in points]
        self._mci = [mci for _, mci in points]
        self._area = [0.0]
        for index in range(1, len(points)):
            width = self._at[index] - self._at[index - 1]
            self._area.append(self._area[-1] + width * (self._mci[index] + self._mci[index - 1]) / 2.0)

    def mean(self, start: float, stop: float) -> float | None:
        if not self._at or stop <= start:
            return None
        return (self._until(stop) - self._until(start)) / (stop - start)

    def _until(self, moment: float) -> float:
        """The area from the first reading to `moment`; negative before it."""
        index = bisect_right(self._at, moment) - 1
        if index < 0:
            return (moment - self._at[0]) * self._mci[0]
        width, mci = moment - self._at[index], self._mci[index]
        if index + 1 < len(self._at):
            slope = (self._mci[index + 1] - mci) / (self._at[index + 1] - self._at[index])
            return self._area[index] + width * (mci + slope * width / 2.0)
        return self._area[index] + width * mci
