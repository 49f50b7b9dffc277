"""Clearing price: the carbon intensity below which sites train to meet a deadline or budget.

With a deadline, the price is the lowest one at which the forecast windows still
suffice for the remaining work, so that the run uses the cleanest site-time. With a
carbon budget, it is the highest one at which the remaining work stays within the
budget. The price is recomputed as the run goes on and never exceeds a region's own
threshold. Starts, stops, exchanges and windows too short to use are accounted for.
Units: seconds, site-seconds of training, W, kg.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from curtail.grid.forecast import Segment
from curtail.grid.reading import JOULES_PER_KWH
from curtail.policy.costs import SiteCosts, shortest_window

SAFETY, PERFECT_SAFETY = 1.15, 1.01
"""Safety factors on the work under a deadline: for inaccurate forecasts, and for a perfect one."""


def safety_factor(given: float | None, perfect: bool) -> float:
    """The factor on the work: `given` by the user, or what the forecast deserves; perfect: it cannot err."""
    return given or (PERFECT_SAFETY if perfect else SAFETY)


@dataclass(frozen=True, slots=True)
class Outlook:
    """One site's forecast up to the deadline."""

    region: str
    cap: float  # gCO2/kWh, the region's own threshold
    now: float
    segments: Sequence[Segment]  # those below the cap, in time order
    costs: SiteCosts
    running: bool
    min_window: float


@dataclass(frozen=True, slots=True)
class Price:
    """Train strictly below `limit` gCO2/kWh, and why."""

    limit: float
    reason: str
    made: float  # controller clock


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds of two or more sites: `length_s` seconds of training, then `sync_s` seconds of exchange without it."""

    length_s: float
    sync_s: float

    @property
    def share(self) -> float:
        """Share of a federated round spent training, 0 to 1."""
        return self.length_s / (self.length_s + self.sync_s)


def training_spans(outlook: Outlook, limit: float) -> list[tuple[float, float]]:
    """Times in which the site would train below `limit`: windows worth a start, minus start and stop."""
    needed = shortest_window(outlook.costs, outlook.min_window)
    start_s, stop_s = outlook.costs.start_s, outlook.costs.stop_s
    spans: list[tuple[float, float]] = []

    def window(begin: float, end: float) -> None:
        warm = outlook.running and begin <= outlook.now
        at, until = begin + (0.0 if warm else start_s), end - stop_s
        if (warm or end - begin >= needed) and until > at:
            spans.append((at, until))

    begin, end = inf, -inf
    for start, stop, mci in outlook.segments:
        if mci < limit:
            if start > end:
                window(begin, end)
                begin = start
            end = stop
    window(begin, end)
    return spans


def site_seconds(outlooks: Sequence[Outlook], limit: float, rounds: Rounds) -> float:
    """Site-seconds of training available below `limit`."""
    edges: list[tuple[float, int]] = []
    for outlook in outlooks:
        for begin, end in training_spans(outlook, limit):
            edges += ((begin, 1), (end, -1))
    edges.sort()
    total, count, at = 0.0, 0, 0.0
    for moment, change in edges:
        if count:
            # if two sites together would train less than one alone, only one trains
            total += (moment - at) * (max(1.0, count * rounds.share) if count > 1 else 1.0)
        count, at = count + change, moment
    return total


def _prices(outlooks: Sequence[Outlook]) -> list[float]:
    """All candidate prices, ascending: the distinct forecast values and caps."""
    return sorted({mci for o in outlooks for _, _, mci in o.segments} | {o.cap for o in outlooks})


def clearing_price(
    outlooks: Sequence[Outlook], work: float, safety: float, rounds: Rounds, now: float, hint: float | None = None
) -> Price:
    """The lowest price at which `work` x `safety` site-seconds of training are available.

    Args:
        outlooks: up to the deadline or the forecast horizon.
        hint: the last price; the search begins there.
    """
    cap = max((outlook.cap for outlook in outlooks), default=0.0)
    prices = _prices(outlooks)
    need = work * safety
    if not prices or site_seconds(outlooks, cap, rounds) < need:
        return Price(cap, f"the deadline cannot be met on power below {cap:.0f} g/kWh; all of it is used", now)

    def holds(index: int) -> bool:
        return site_seconds(outlooks, prices[index], rounds) >= need

    low, high = -1, len(prices) - 1  # `low` is too low, `high` is enough
    if hint is not None:
        low, high = _bracket(prices, hint, holds, low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return Price(prices[high], f"power below {prices[high]:.0f} g/kWh is enough for the deadline", now)


def _bracket(
    prices: Sequence[float], hint: float, holds: Callable[[int], bool], low: int, high: int
) -> tuple[int, int]:
    """A tighter bracket around the last price, because the price seldom moves far."""
    index, step = bisect_left(prices, hint), 1
    while low < index < high:
        if holds(index):
            high, index = index, index - step
        else:
            low, index = index, index + step
        if low != -1 and high != len(prices) - 1:
            break
        step *= 4
    return low, high


def emissions(outlooks: Sequence[Outlook], limit: float, work: float, rounds: Rounds) -> float:
    """kgCO2 of training `work` site-seconds as soon as possible below `limit`; inf if that much is not available."""
    pieces: list[tuple[float, float, float]] = []  # begin, end, watts x gCO2/kWh
    for outlook in outlooks:
        for begin, end in training_spans(outlook, limit):
            for start, stop, mci in outlook.segments:
                if start < end and stop > begin:
                    pieces.append((max(start, begin), min(stop, end), outlook.costs.train_w * max(0.0, mci)))
    edges = sorted([(b, 1, w) for b, _, w in pieces] + [(e, -1, -w) for _, e, w in pieces])
    done, grams, count, weight, at = 0.0, 0.0, 0, 0.0, 0.0
    for moment, change, watts in edges:
        share = rounds.share if count > 1 else 1.0
        seconds = moment - at
        if count and done + count * seconds * share >= work:
            seconds = (work - done) / (count * share)
            return (grams + weight * seconds * share / JOULES_PER_KWH) / 1000.0
        done += count * seconds * share
        grams += weight * seconds * share / JOULES_PER_KWH
        count, weight, at = count + change, weight + watts, moment
    return inf


def budget_price(outlooks: Sequence[Outlook], work: float, budget_kg: float, rounds: Rounds, now: float) -> Price:
    """The highest price at which `work` emits at most `budget_kg`, to finish as fast as the budget allows."""
    cap = max((outlook.cap for outlook in outlooks), default=0.0)
    prices = _prices(outlooks)
    for price in reversed(prices):
        if emissions(outlooks, price, work, rounds) <= budget_kg:
            return Price(price, f"below {price:.0f} g/kWh the work stays within {budget_kg:.2f} kg", now)
    least = prices[0] if prices else cap
    return Price(least, f"no price keeps the work within {budget_kg:.2f} kg; only the cleanest power is used", now)
