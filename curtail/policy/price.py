"""The clearing price: how clean must power be, so that the work is done in time and no cleaner?

With a deadline, every region's threshold falls to the lowest price (gCO2/kWh)
at which the windows of the forecast still hold the work that is left; so the
run takes the cheapest site-time. With a budget it is the highest price at which
what is left emits no more than the budget. Both prices are computed anew as the
run goes on and never exceed a region's own threshold. Starts, stops, windows
too short to begin and exchanges are charged. Units: seconds, site-seconds of
training, W, kg.
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
"""Factors on the work under a deadline: since forecasts err, and when the forecast cannot."""


def safety_factor(given: float | None, perfect: bool) -> float:
    """The factor on the work: `given` by the user, or what the forecast deserves; perfect: it cannot err."""
    return given or (PERFECT_SAFETY if perfect else SAFETY)


@dataclass(frozen=True, slots=True)
class Outlook:
    """One site's future up to the deadline."""

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
    """What an exchange costs: `sync_s` without training after every `length_s`, when two or more sites train."""

    length_s: float
    sync_s: float

    @property
    def share(self) -> float:
        """Part of the time of a federated round in which sites train."""
        return self.length_s / (self.length_s + self.sync_s)


def training_spans(outlook: Outlook, limit: float) -> list[tuple[float, float]]:
    """When the site would train below `limit`: windows worth a start, less start and stop."""
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
    """Site-seconds of training that the outlooks hold below `limit`."""
    edges: list[tuple[float, int]] = []
    for outlook in outlooks:
        for begin, end in training_spans(outlook, limit):
            edges += ((begin, 1), (end, -1))
    edges.sort()
    total, count, at = 0.0, 0, 0.0
    for moment, change in edges:
        if count:
            # two that would train less than one alone do not train together
            total += (moment - at) * (max(1.0, count * rounds.share) if count > 1 else 1.0)
        count, at = count + change, moment
    return total


def _prices(outlooks: Sequence[Outlook]) -> list[float]:
    """All that can make a difference as a price, ascending."""
    return sorted({mci for o in outlooks for _, _, mci in o.segments} | {o.cap for o in outlooks})


def clearing_price(
    outlooks: Sequence[Outlook], work: float, safety: float, rounds: Rounds, now: float, hint: float | None = None
) -> Price:
    """The lowest price at which the outlooks hold `work` x `safety` site-seconds.

    Args:
        outlooks: up to the deadline, or as far as forecasts reach.
        hint: the last price; the search begins there.
    """
    cap = max((outlook.cap for outlook in outlooks), default=0.0)
    prices = _prices(outlooks)
    need = work * safety
    if not prices or site_seconds(outlooks, cap, rounds) < need:
        return Price(cap, f"the deadline cannot be met on power below {cap:.0f} g/kWh; all of it is used", now)

    def holds(index: int) -> bool:
        return site_seconds(outlooks, prices[index], rounds) >= need

    low, high = -1, len(prices) - 1  # `low` is too low, `high` holds the work
    if hint is not None:
        low, high = _bracket(prices, hint, holds, low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return Price(prices[high], f"power below {prices[high]:.0f} g/kWh is enough for the deadline", now)


def _bracket(
    prices: Sequence[float], hint: float, holds: Callable[[int], bool], low: int, high: int
) -> tuple[int, int]:
    """A tighter bracket around the last price, for it seldom moves far."""
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
    """kgCO2 of doing `work` site-seconds as soon as possible below `limit`; inf if the outlooks do not hold it."""
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
    """The highest price at which `work` emits no more than `budget_kg`: as fast as the budget allows."""
    cap = max((outlook.cap for outlook in outlooks), default=0.0)
    prices = _prices(outlooks)
    for price in reversed(prices):
        if emissions(outlooks, price, work, rounds) <= budget_kg:
            return Price(price, f"below {price:.0f} g/kWh the work keeps within {budget_kg:.2f} kg", now)
    least = prices[0] if prices else cap
    return Price(least, f"no price keeps the work within {budget_kg:.2f} kg; the cleanest power is used", now)
