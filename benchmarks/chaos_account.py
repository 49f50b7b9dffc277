"""Which fault cost how much: what each site did not train, in seconds of its own pace, put down to the faults.

Pure functions. The account is exact in its sum: between two versions a site should
add to the tokens as many as in the calm run; what is missing is its loss, in seconds
of a site. Losses of a struck site belong to its own fault, those of the others to the
fault they waited for, as far as time tells; what is near no fault is left over, and so
is the noise of both runs. A loss below zero is a contribution that came later than
usual and counts in the next version.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.chaos_faults import CONTROLLER, Fault

OWN_S, OTHERS_S = 60.0, 20.0
"""So long after its end a fault can still cost the struck site, or another one."""


@dataclass(frozen=True, slots=True)
class Span:
    """What came to the run between two versions. Times: seconds since the measured time began."""

    start: float
    end: float
    tokens: Mapping[str, int]  # by site


@dataclass(slots=True)
class Cost:
    """What a fault cost, in seconds of a site."""

    fault: str
    kind: str
    own_s: float = 0.0  # of the site that was struck; of all sites where it was the controller
    others_s: float = 0.0


def spans(versions: Sequence[tuple[float, int]], merged: Sequence[tuple[int, str, int]]) -> list[Span]:
    """What lies between each two versions that were seen.

    Args: versions: (when it was seen, number), ascending. merged: (version, site, tokens) of every contribution.
    """
    found = []
    for (start, before), (end, after) in itertools.pairwise(versions):
        tokens: dict[str, int] = {}
        for version, site, count in merged:
            if before < version <= after:
                tokens[site] = tokens.get(site, 0) + count
        found.append(Span(start, end, tokens))
    return found


def account(
    parts: Sequence[Span], sites: Sequence[str], faults: Sequence[Fault], rate: float, seconds: float
) -> tuple[list[Cost], float]:
    """What each fault cost, in the order of `faults`, and what is left over.

    Args: rate: tokens per second of one site when nothing happens. seconds: how long was measured.
    """
    costs, left = [Cost(str(fault), fault.kind) for fault in faults], 0.0
    for part in parts:
        inside = max(0.0, min(part.end, seconds) - max(part.start, 0.0)) / max(1e-9, part.end - part.start)
        for site in sites:
            loss = inside * (part.end - part.start - part.tokens.get(site, 0) / rate)
            index = blamed(part, site, faults)
            if index is None:
                left += loss
            elif faults[index].target in (site, CONTROLLER):
                costs[index].own_s += loss
            else:
                costs[index].others_s += loss
    return costs, left


def blamed(part: Span, site: str, faults: Sequence[Fault]) -> int | None:
    """The fault to which a loss of `site` in this part is put down: its own, else the controller's, else another's."""

    def near(fault: Fault, seconds: float) -> bool:
        return fault.at < part.end and fault.at + fault.seconds + seconds > part.start

    reach = {site: OWN_S, CONTROLLER: OTHERS_S}
    for target, seconds in reach.items():
        for index in reversed(range(len(faults))):
            if faults[index].target == target and near(faults[index], seconds):
                return index
    return next((index for index in reversed(range(len(faults))) if near(faults[index], OTHERS_S)), None)


def by_kind(costs: Sequence[Cost]) -> dict[str, dict[str, float]]:
    """For each kind of fault: how many there were, and what one cost on the average, in seconds of a site."""
    found = {}
    for kind in sorted({cost.kind for cost in costs}):
        of_it = [cost for cost in costs if cost.kind == kind]
        own, others = sum(cost.own_s for cost in of_it), sum(cost.others_s for cost in of_it)
        found[kind] = {"faults": len(of_it), "own_s": own / len(of_it), "others_s": others / len(of_it)}
    return found
