"""What goes wrong in a chaos run, and when: drawn from a seed, so that a run can be repeated.

Pure values. A fault begins at `at` seconds after the measured time began and
lasts `seconds` (0: one blow, such as a kill). The target is a site, or the
controller ("").
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

CONTROLLER = ""

KINDS: dict[str, tuple[bool, bool, tuple[float, float]]] = {
    # kind: (can strike a site, can strike the controller, shortest and longest time in seconds)
    "kill agent": (True, False, (0.0, 0.0)),
    "kill job": (True, False, (0.0, 0.0)),
    "kill controller": (False, True, (0.0, 0.0)),
    "stop agent": (True, False, (3.0, 12.0)),
    "stop job": (True, False, (3.0, 12.0)),
    "stop controller": (False, True, (1.0, 5.0)),
    "partition": (True, False, (5.0, 20.0)),
    "slow link": (True, False, (10.0, 20.0)),
    "corrupt bytes": (True, False, (5.0, 10.0)),
    "disk full": (True, True, (5.0, 12.0)),
    "clock jump": (True, True, (10.0, 20.0)),
    "stale signal": (True, False, (5.0, 15.0)),
}
"""Every kind of fault. A kill is SIGKILL, a stop SIGSTOP; what was killed is started again as systemd would."""

COMMON = ("kill agent", "kill job")
"""What strikes again once every kind has struck: of 16 faults 7 are kills then, as 27 of 62 in ft-diloco's run."""

EARLIEST, LATEST = 0.03, 0.85
"""Faults begin in this part of the measured time, so that what they cost falls into it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at: float
    kind: str
    target: str  # a site, or CONTROLLER
    seconds: float

    def __str__(self) -> str:
        length = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at:6.1f} s  {self.kind}, {self.target or 'the controller'}{length}"


def plan(
    seed: int, sites: Sequence[str], duration: float, count: int, kinds: Sequence[str] = tuple(KINDS)
) -> list[Fault]:
    """`count` faults within `duration` seconds, in order: every kind once, in a random order, then the common ones.

    Raises: ValueError: a kind that is not known, or no site.
    """
    if not sites or not set(kinds) <= set(KINDS):
        raise ValueError(f"sites are needed, and kinds out of {', '.join(KINDS)}")
    draw = random.Random(seed)
    chosen = draw.sample(list(kinds), len(kinds))[:count]
    common = [kind for kind in COMMON if kind in kinds] or list(kinds)
    chosen += [draw.choice(common) for _ in range(count - len(chosen))]
    moments = sorted(draw.uniform(EARLIEST, LATEST) * duration for _ in range(count))
    draw.shuffle(chosen)
    return [_fault(draw, at, kind, sites) for at, kind in zip(moments, chosen, strict=True)]


def _fault(draw: random.Random, at: float, kind: str, sites: Sequence[str]) -> Fault:
    at_site, at_controller, (shortest, longest) = KINDS[kind]
    targets = [*(sites if at_site else ()), *((CONTROLLER,) if at_controller else ())]
    return Fault(round(at, 2), kind, draw.choice(targets), round(draw.uniform(shortest, longest), 2))


def stale(faults: Sequence[Fault], site: str, at: float) -> bool:
    """Does the signal of `site` say nothing at `at`? For the trace of the run, which is written before it."""
    return any(f.kind == "stale signal" and f.target == site and f.at <= at < f.at + f.seconds for f in faults)
