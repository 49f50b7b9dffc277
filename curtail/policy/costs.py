"""What a site loses and draws when it starts, stops and exchanges: is a window worth it?

Pure arithmetic on the measured (or assumed) costs of one site. The rules and
their numbers are those of docs/guides/carbon-accounting.md. Units: seconds, W,
gCO2/kWh, grams.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from curtail.grid.reading import JOULES_PER_KWH

LONGEST_HOLD_S = 300.0
"""No gap longer than this is waited out with the weights on the GPUs."""

WINDOW_PER_START = 5.0
"""A window must be this many times as long as a start and a stop together."""

SHORTEST_WINDOW_S = 900.0
"""No window shorter than this is begun, however quick a start is."""


@dataclass(frozen=True, slots=True)
class SiteCosts:
    """What one site loses and draws; measured by the run, or assumed by the planner."""

    start_s: float  # from the decision to the first step
    stop_s: float  # from the last step to released GPUs, contribution uploaded
    sync_s: float  # of a federated round without training
    train_w: float
    idle_w: float  # loading, exchanging, draining, holding
    paused_w: float = 0.0  # released


def shortest_window(costs: SiteCosts, floor: float = SHORTEST_WINDOW_S) -> float:
    """Seconds that an expected window must last to be worth a start."""
    return max(floor, WINDOW_PER_START * (costs.start_s + costs.stop_s))


def holding_grams(costs: SiteCosts, mci: float, gap_s: float) -> float:
    """gCO2 of keeping the weights on idle GPUs through a gap."""
    return costs.idle_w * gap_s / JOULES_PER_KWH * max(0.0, mci)


def restart_grams(costs: SiteCosts, mci: float, price: float) -> float:
    """gCO2 of a start: what it draws, and the training lost meanwhile, done elsewhere.

    Args:
        mci: gCO2/kWh while the site would start.
        price: gCO2/kWh at which the lost training is made up for: the price in force.
    """
    lost = costs.train_w * costs.start_s / JOULES_PER_KWH * max(0.0, price)
    return holding_grams(costs, mci, costs.start_s) + lost


def worth_holding(costs: SiteCosts, gap_s: float, mci_gap: float, mci_after: float, price: float) -> bool:
    """Is waiting through a gap cheaper than to release the GPUs and start anew after it?"""
    if not 0.0 < gap_s <= LONGEST_HOLD_S or mci_gap == inf:
        return False
    return holding_grams(costs, mci_gap, gap_s) < restart_grams(costs, mci_after, price)


def worth_joining(costs: SiteCosts, window_s: float, shared_s: float, round_s: float) -> bool:
    """Does a second site add more training than the exchanges of both cost?

    A third one is always worth it, since the others exchange already.
    Args:
        window_s: how long the site could train.
        shared_s: how much of that the other one trains too, and would exchange because of it.
    """
    if window_s == inf:
        return True
    share = round_s / (round_s + costs.sync_s)
    gained = max(0.0, shared_s - costs.start_s - costs.stop_s) * share + (window_s - shared_s)
    return gained > shared_s * (1.0 - share)
