"""Makes the inner steps of a job take a fixed time, as on a GPU that does nothing else: for the chaos run.

On a machine with two cores the toy steps of many sites would take each other's pace,
and every job that starts would slow all the others: no fleet of GPUs does that. With
CURTAIL_CHAOS_PACE a step computes what it computes and then waits for its beat, by
monotonic time. Nothing of the product knows of it: `sitecustomize` hangs it on the
name by which `agent.job.trainer` calls the inner steps.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

TRAINER, STEPS = "agent.job.trainer", "inner_steps"


def paced(
    steps: Callable[..., Any],
    pace_s: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Callable[..., Any]:
    """`steps` (see `nanochat.train.inner_steps`) with every step `pace_s` seconds long, longer ones as they are."""

    @functools.wraps(steps)
    def at_pace(*arguments: Any, until: Callable[[int], bool], **more: Any) -> Any:
        due = now()

        def wait(step: int) -> bool:
            nonlocal due
            if step:  # asked before the first one, too
                due = max(due + pace_s, now())
                sleep(max(0.0, due - now()))
            return until(step)

        return steps(*arguments, until=wait, **more)

    return at_pace


class PacedTrainer(MetaPathFinder):
    """Finds the trainer as ever, and paces it once it is loaded."""

    def __init__(self, pace_s: float) -> None:
        self.pace_s = pace_s

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The trainer's spec with a loader that paces; None for all other modules."""
        if fullname != TRAINER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            raise ImportError(f"{TRAINER} is not there to be paced")
        load = spec.loader.exec_module

        def load_and_pace(module: ModuleType) -> None:
            load(module)
            setattr(module, STEPS, paced(getattr(module, STEPS), self.pace_s))

        spec.loader.exec_module = load_and_pace  # type: ignore[method-assign]
        return spec
