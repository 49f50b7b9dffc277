"""What a merge is asked and answers, and every decision in it. Pure.

Decides which contributions count and how much, which outer step applies, and
what becomes of the velocity. The arithmetic on files is `controller.aggregation.aggregate`.
Deltas have the sign of a gradient: base minus local. Sources: DiLoCo (arXiv
2311.08105) for the outer step; discount of late deltas and the gate on norms as
in asynchronous local SGD (arXiv 2401.09135) and OpenDiLoCo's successors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

OUTLIER = 5.0
"""A delta whose norm is this many times the usual one is refused."""

LARGEST = 1e15
"""No norm above this is believed: sums and squares of smaller ones stay within float32."""

USUAL_FROM, USUAL_OF = 5, 20
"""The usual norm is the mean over the last 20 accepted deltas, and unknown before there are 5."""


@dataclass(frozen=True, slots=True)
class Part:
    """One committed contribution."""

    site: str
    path: str
    codec: str  # weights (exact, LOCAL), or one of `nanochat.codecs.CODECS`
    tokens: int
    digest: str  # of the weights, when codec is "weights"
    weight: float = 1.0  # factor on its tokens in the mean; 0.5 for each version it is late
    stale: int = 0  # versions between its base and the base of the merge


@dataclass(frozen=True, slots=True)
class MergeSpec:
    """Everything a merge needs, by value and by path."""

    round: int
    version: int  # to be made
    base: str  # folder of the base version
    out: str  # empty folder to fill
    parts: tuple[Part, ...]
    codec: str  # of the broadcast
    outer: tuple[tuple[int, float, float], ...]  # rows (sites, lr, momentum), see `outer_row`
    momentum_off: bool  # the last tenth of the token budget
    tokens: int  # global tokens before this round
    created: str
    usual_norm: float | None = None  # mean of recent `MergeResult.norms`; None: not known yet
    usual_tokens: float | None = None  # mean tokens of the same contributions


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge made. `accepted` is empty if every contribution was refused; then there are no files."""

    accepted: tuple[str, ...]
    refused: dict[str, str]  # site -> why
    digest: str = ""
    weights: str = ""  # SHA-256 of the file
    weights_size: int = 0
    updates: str = ""  # SHA-256 of the broadcast delta, or ""
    updates_size: int = 0
    # accepted site -> norm of its delta per root of its tokens
    norms: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OuterPlan:
    """The outer step of one merge."""

    lr: float
    momentum: float
    keep_velocity: bool  # carry the base's velocity over as it is


def outer_row(outer: Sequence[tuple[int, float, float]], sites: int) -> tuple[float, float]:
    """Rate and momentum for a number of contributors: the row with the largest `sites` not above it.

    A sole contributor's result is taken as it is (rate 1, no momentum), as is the mean where no row fits.
    """
    rows = [row for row in outer if row[0] <= sites]
    if sites < 2 or not rows:
        return 1.0, 0.0
    _, lr, momentum = max(rows)
    return lr, momentum


def plan(spec: MergeSpec, accepted: Sequence[Part]) -> OuterPlan:
    """The outer step for the contributions that are left.

    A late delta points where the model was: with one of those there is no momentum, and the velocity waits.
    """
    lr, momentum = outer_row(spec.outer, len(accepted))
    lr *= max(part.weight for part in accepted)  # the mean forgets a factor that all have in common
    if spec.momentum_off and momentum:
        # The row's rate is for both together; without momentum the mean is taken as it is.
        return OuterPlan(min(1.0, lr / (1.0 - momentum)), 0.0, False)
    if any(part.stale for part in accepted):
        return OuterPlan(lr, 0.0, True)
    return OuterPlan(lr, momentum, False)


def shares(parts: Sequence[Part]) -> list[float]:
    """The weight of each contribution in the mean: its tokens times its factor; they sum to 1."""
    total = math.fsum(part.tokens * part.weight for part in parts)
    return [part.tokens * part.weight / total for part in parts]


def outer_step(
    mean: np.ndarray, velocity: np.ndarray | None, lr: float, momentum: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """What to subtract from the base for a mean delta, and the new velocity.

    u' = momentum u + mean; step = lr (mean + momentum u'), as torch.optim.SGD(nesterov=True).
    Without momentum there is no velocity. All float32; `mean` is not changed.
    """
    if momentum == 0.0:
        return (mean if lr == 1.0 else mean * np.float32(lr)), None
    velocity = mean if velocity is None else np.float32(momentum) * velocity + mean
    return np.float32(lr) * (mean + np.float32(momentum) * velocity), velocity


def per_root_token(norm: float, tokens: int) -> float:
    """The norm of a delta of `tokens` tokens, made comparable with others.

    Steps in random directions add up to a norm that grows as the root of their number, steps in one direction
    as their number; real ones lie between. By the root, a delta of few steps (a drained site) is never taken
    for an outlier beside long ones.
    """
    return norm / math.sqrt(tokens)


def usual(recent: Sequence[tuple[float, int]]) -> tuple[float | None, float | None]:
    """`usual_norm` and `usual_tokens` of a spec, from recent accepted deltas, oldest first.

    Args: recent: (`MergeResult.norms` of a contribution, its tokens).
    """
    last = recent[-USUAL_OF:]
    if len(last) < USUAL_FROM:
        return None, None
    return statistics.fmean(norm for norm, _ in last), statistics.fmean(tokens for _, tokens in last)


def outliers(spec: MergeSpec, norms: Mapping[str, float]) -> dict[str, str]:
    """Sites whose delta must not be merged, each with the reason.

    Not finite; or over 5 times the median of three or more; or, with fewer, over 5 times what recent rounds
    showed. Being longer than those is no fault: a delta counts as far out only if it is so both per token and
    per root of a token (see `per_root_token`).
    Args: norms: site -> norm of its whole delta.
    """
    tokens = {part.site: part.tokens for part in spec.parts}
    refused = {}
    for site, norm in norms.items():
        if not math.isfinite(norm):
            refused[site] = "its delta is not finite"
        elif norm > LARGEST:
            refused[site] = f"its delta's norm {norm:.3g} is beyond all sense"
    fine = [site for site in norms if site not in refused]
    if len(fine) >= 3:
        by_root = statistics.median(per_root_token(norms[site], tokens[site]) for site in fine)
        by_token = statistics.median(norms[site] / tokens[site] for site in fine)
        what = "the median"
    elif spec.usual_norm is not None:
        by_root = spec.usual_norm
        by_token = by_root / math.sqrt(spec.usual_tokens) if spec.usual_tokens else 0.0
        what = "that of recent rounds"
    else:
        return refused
    for site in fine:
        limit = OUTLIER * max(by_root * math.sqrt(tokens[site]), by_token * tokens[site])
        if norms[site] > limit > 0:
            refused[site] = f"its delta's norm {norms[site]:.3g} is over {OUTLIER:g} times {what} (limit {limit:.3g})"
    return refused


def spec_to_json(spec: MergeSpec) -> str:
    """The form in which a spec is handed to the process."""
    return json.dumps(dataclasses.asdict(spec))


def spec_from_json(text: str) -> MergeSpec:
    """The inverse of `spec_to_json`."""
    value = json.loads(text)
    parts = tuple(Part(**part) for part in value.pop("parts"))
    outer = tuple((sites, lr, momentum) for sites, lr, momentum in value.pop("outer"))
    return MergeSpec(parts=parts, outer=outer, **value)


def result_to_json(result: MergeResult) -> str:
    """The form in which a process leaves its result."""
    return json.dumps(dataclasses.asdict(result))


def result_from_json(text: str) -> MergeResult:
    """The inverse of `result_to_json`."""
    value = json.loads(text)
    return MergeResult(accepted=tuple(value.pop("accepted")), **value)
