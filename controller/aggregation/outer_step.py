"""The outer step of a merge: its input and result, the weighting, and the outlier check; pure.

Decides which contributions count and with which weight, which outer step applies,
and what happens to the velocity. `controller.aggregation.aggregate` does the
arithmetic on files. A pseudo-gradient is base minus local weights, so it has the
sign of a gradient. Sources: DiLoCo (arXiv 2311.08105) for the outer step;
asynchronous local SGD (arXiv 2401.09135) and OpenDiLoCo's successors for the
discount of late contributions and the limit on norms.
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
"""A pseudo-gradient whose norm is more than this many times the usual norm is refused."""

LARGEST = 1e15
"""Larger norms are always refused. Below it, sums and squares stay within float32."""

USUAL_FROM, USUAL_OF = 5, 20
"""The usual norm is the mean over the last 20 accepted pseudo-gradients; it is unknown before there are 5."""


@dataclass(frozen=True, slots=True)
class Part:
    """One committed contribution."""

    site: str
    path: str
    codec: str  # weights (exact, LOCAL), or one of `nanochat.codecs.CODECS`
    tokens: int
    digest: str  # of the weights, when codec is "weights"
    weight: float = 1.0  # factor on its tokens in the mean; below 1 if it is late (`rounds.lifecycle.discount`)
    stale: int = 0  # versions between its base and the base of the merge


@dataclass(frozen=True, slots=True)
class MergeSpec:
    """Everything a merge needs, by value and by path."""

    round: int
    version: int  # the version to create
    base: str  # folder of the base version
    out: str  # empty folder to fill
    parts: tuple[Part, ...]
    codec: str  # of the broadcast update
    outer: tuple[tuple[int, float, float], ...]  # rows (sites, lr, momentum), see `outer_row`
    momentum_off: bool  # true in the last tenth of the token budget
    tokens: int  # merged tokens before this round
    created: str
    usual_norm: float | None = None  # mean of recent `MergeResult.norms`; None: unknown
    usual_tokens: float | None = None  # mean tokens of the same contributions


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The result of a merge. If every contribution was refused, `accepted` is empty and there are no files."""

    accepted: tuple[str, ...]
    refused: dict[str, str]  # site -> why
    digest: str = ""
    weights: str = ""  # SHA-256 of the file
    weights_size: int = 0
    updates: str = ""  # SHA-256 of the broadcast update, or ""
    updates_size: int = 0
    # accepted site -> norm of its pseudo-gradient per square root of its tokens
    norms: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OuterPlan:
    """The outer step of one merge."""

    lr: float
    momentum: float
    keep_velocity: bool  # copy the base's velocity unchanged


def outer_row(outer: Sequence[tuple[int, float, float]], sites: int) -> tuple[float, float]:
    """Outer learning rate and momentum for a number of contributors: the row with the largest `sites` up to it.

    For one contributor, or if no row fits: rate 1 and no momentum, so that the mean is applied unchanged.
    """
    rows = [row for row in outer if row[0] <= sites]
    if sites < 2 or not rows:
        return 1.0, 0.0
    _, lr, momentum = max(rows)
    return lr, momentum


def plan(spec: MergeSpec, accepted: Sequence[Part]) -> OuterPlan:
    """The outer step for the accepted contributions.

    A late pseudo-gradient belongs to an older model: with one, there is no momentum, and the velocity is kept.
    """
    lr, momentum = outer_row(spec.outer, len(accepted))
    lr *= max(part.weight for part in accepted)  # a common factor of all weights cancels out in the mean
    if spec.momentum_off and momentum:
        # The row's rate is meant for use with momentum; lr / (1 - momentum) is the equivalent rate without it.
        return OuterPlan(min(1.0, lr / (1.0 - momentum)), 0.0, False)
    if any(part.stale for part in accepted):
        return OuterPlan(lr, 0.0, True)
    return OuterPlan(lr, momentum, False)


def shares(parts: Sequence[Part]) -> list[float]:
    """The share of each contribution in the mean: its tokens times its weight, normalised to a sum of 1."""
    total = math.fsum(part.tokens * part.weight for part in parts)
    return [part.tokens * part.weight / total for part in parts]


def outer_step(
    mean: np.ndarray, velocity: np.ndarray | None, lr: float, momentum: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """The step to subtract from the base for a mean pseudo-gradient, and the new velocity.

    u' = momentum u + mean; step = lr (mean + momentum u'), as torch.optim.SGD(nesterov=True).
    Without momentum there is no velocity. All float32; `mean` is not changed.
    """
    if momentum == 0.0:
        return (mean if lr == 1.0 else mean * np.float32(lr)), None
    velocity = mean if velocity is None else np.float32(momentum) * velocity + mean
    return np.float32(lr) * (mean + np.float32(momentum) * velocity), velocity


def per_root_token(norm: float, tokens: int) -> float:
    """The norm of a pseudo-gradient per square root of its tokens, to compare those of different lengths.

    The norm of steps in random directions grows with the square root of their number, that of steps in one
    direction with their number; real steps lie between. With the square root, a short pseudo-gradient (of a
    drained site) never looks like an outlier beside long ones.
    """
    return norm / math.sqrt(tokens)


def usual(recent: Sequence[tuple[float, int]]) -> tuple[float | None, float | None]:
    """`usual_norm` and `usual_tokens` of a spec, from recent accepted pseudo-gradients, oldest first.

    Args: recent: (`MergeResult.norms` of a contribution, its tokens).
    """
    last = recent[-USUAL_OF:]
    if len(last) < USUAL_FROM:
        return None, None
    return statistics.fmean(norm for norm, _ in last), statistics.fmean(tokens for _, tokens in last)


def outliers(spec: MergeSpec, norms: Mapping[str, float]) -> dict[str, str]:
    """Sites whose pseudo-gradient must not be merged, each with the reason.

    Refused are norms that are not finite, or over 5 times the median of three or more; with fewer, over 5 times
    the usual norm of recent rounds. A longer pseudo-gradient may have a larger norm, so it is an outlier only if
    it exceeds the limit both per token and per square root of tokens (see `per_root_token`).
    Args: norms: site -> norm of its whole pseudo-gradient.
    """
    tokens = {part.site: part.tokens for part in spec.parts}
    refused = {}
    for site, norm in norms.items():
        if not math.isfinite(norm):
            refused[site] = "its pseudo-gradient is not finite"
        elif norm > LARGEST:
            refused[site] = f"the norm of its pseudo-gradient, {norm:.3g}, is impossibly large"
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
            norm = norms[site]
            refused[site] = f"its pseudo-gradient's norm {norm:.3g} exceeds {OUTLIER:g} times {what} ({limit:.3g})"
    return refused


def spec_to_json(spec: MergeSpec) -> str:
    """Serialise a spec for the merge process."""
    return json.dumps(dataclasses.asdict(spec))


def spec_from_json(text: str) -> MergeSpec:
    """The inverse of `spec_to_json`."""
    value = json.loads(text)
    parts = tuple(Part(**part) for part in value.pop("parts"))
    outer = tuple((sites, lr, momentum) for sites, lr, momentum in value.pop("outer"))
    return MergeSpec(parts=parts, outer=outer, **value)


def result_to_json(result: MergeResult) -> str:
    """Serialise the result of the merge process."""
    return json.dumps(dataclasses.asdict(result))


def result_from_json(text: str) -> MergeResult:
    """The inverse of `result_to_json`."""
    value = json.loads(text)
    return MergeResult(accepted=tuple(value.pop("accepted")), **value)
