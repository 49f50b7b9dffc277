"""Costs of starts, stops, holds and exchanges at one site, and whether a window is worth them.

Pure arithmetic on the measured (or assumed) costs of one site. The rules and
their numbers are those of docs/guides/carbon-accounting.md. Units: seconds, W,
gCO2/kWh, grams.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from curtail.grid.reading import JOULES_PER_KWH

LONGEST_HOLD_S = 300.0
"""Longest gap through which a site may hold its weights on the GPUs, in seconds."""

WINDOW_PER_START = 5.0
"""Minimum ratio of a window's length to the time of one start and one stop."""

SHORTEST_WINDOW_S = 900.0
"""Minimum length of a window in seconds, however quick a start is."""


@dataclass(frozen=True, slots=True)
class SiteCosts:
    """Time and power costs of one site; measured by the run, or assumed by the planner."""

    start_s: float  # from the decision to the first step
    stop_s: float  # from the last step to released GPUs, contribution uploaded
    sync_s: float  # time of a federated round that is not spent training
    train_w: float
    idle_w: float  # loading, exchanging, draining, holding
    paused_w: float = 0.0  # released


def shortest_window(costs: SiteCosts, floor: float = SHORTEST_WINDOW_S) -> float:
    """Minimum length in seconds of a forecast window that is worth a start."""
    return max(floor, WINDOW_PER_START * (costs.start_s + costs.stop_s))


def holding_grams(costs: SiteCosts, mci: float, gap_s: float) -> float:
    """gCO2 of keeping the weights on idle GPUs for `gap_s` seconds."""
    return costs.idle_w * gap_s / JOULES_PER_KWH * max(0.0, mci)


def restart_grams(costs: SiteCosts, mci: float, price: float) -> float:
    """gCO2 of a start: the energy of the start itself, plus making up the lost training time elsewhere.

    Args:
        mci: gCO2/kWh during the start.
        price: gCO2/kWh at which the lost training is made up: the price in force.
    """
    lost = costs.train_w * costs.start_s / JOULES_PER_KWH * max(0.0, price)
    return holding_grams(costs, mci, costs.start_s) + lost


def worth_holding(costs: SiteCosts, gap_s: float, mci_gap: float, mci_after: float, price: float) -> bool:
    """Does holding through a gap emit less than releasing the GPUs and starting again after it?"""
    if not 0.0 < gap_s <= LONGEST_HOLD_S or mci_gap == inf:
        return False
    return holding_grams(costs, mci_gap, gap_s) < restart_grams(costs, mci_after, price)


def worth_joining(costs: SiteCosts, window_s: float, shared_s: float, round_s: float) -> bool:
    """Does a second site add more training time than the exchanges cost both sites?

    A third site is always worth it, because the other two exchange anyway.
    Args:
        window_s: how long the second site could train.
        shared_s: part of that time in which the first site trains too, so that both exchange.
    """
    if window_s == inf:
        return True
    share = round_s / (round_s + costs.sync_s)
    gained = max(0.0, shared_s - costs.start_s - costs.stop_s) * share + (window_s - shared_s)
    return gained > shared_s * (1.0 - share)
