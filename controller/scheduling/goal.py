"""The run's goal for the policy: remaining work, deadline or carbon budget.

Work is the training time of one site, in seconds of the controller's clock: the
tokens left, divided by a site's speed. The speed comes from commits; before the
first commit from what jobs report; before that from the run file. Without any of
these no price can be set. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.store.rows import RunRow
from curtail.config import RunConfig
from curtail.policy.decision import Goal
from curtail.policy.price import Rounds, safety_factor

COMMITS = 20
"""Number of recent contributions from which a site's speed is computed."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Progress of the run; tokens, seconds, kg."""

    left: int  # tokens of the budget that are not trained yet
    commits: Sequence[tuple[int, float]]  # tokens and wall seconds of training of recent contributions
    reported: Sequence[float]  # tokens per wall second that jobs which train report
    spent_kg: float  # attributed so far
    sync_s: float  # of a round, on the controller's clock


@dataclass(frozen=True, slots=True)
class RunGoal:
    """The goal, and what it was computed from."""

    goal: Goal
    tokens_per_s: float | None  # of one site that trains, per second of the controller's clock
    known_by: str  # source of the speed: "measured", "reported", "assumed", or ""
    problem: str  # why no price can be set although a deadline or budget is; "": it can


def make_goal(config: RunConfig, run: RunRow, speed: float, progress: RunProgress, perfect: bool) -> RunGoal:
    """The goal of a run.

    Args:
        speed: seconds of the controller's clock per real second.
        perfect: the forecast is the signal's own future.
    """
    policy = config.policy
    wall_rate, known_by = _rate(progress, policy.tokens_per_s)
    rate = None if wall_rate is None else wall_rate / speed
    deadline = policy.deadline_at(run.started)
    wanted = deadline is not None or policy.budget_kg is not None
    problem = ""
    if wanted and rate is None:
        problem = "no price yet: no site has trained, and [policy] tokens_per_s is not given"
    goal = Goal(
        work=None if rate is None else progress.left / rate,
        deadline=deadline,
        budget_kg=None if policy.budget_kg is None else policy.budget_kg - progress.spent_kg,
        safety=safety_factor(policy.safety, perfect),
        max_sites=policy.max_sites,
        rounds=Rounds(_round_s(config, run.sequence_len, speed, rate), progress.sync_s),
    )
    return RunGoal(goal, rate, known_by, problem)


def _rate(progress: RunProgress, assumed: float | None) -> tuple[float | None, str]:
    """Tokens per wall second of one site, and the source of that figure."""
    tokens, seconds = sum(t for t, _ in progress.commits), sum(s for _, s in progress.commits)
    if tokens > 0 and seconds > 0:
        return tokens / seconds, "measured"
    reported = [rate for rate in progress.reported if rate > 0]
    if reported:
        return sum(reported) / len(reported), "reported"
    return (assumed, "assumed") if assumed else (None, "")


def _round_s(config: RunConfig, sequence_len: int, speed: float, rate: float | None) -> float:
    """Seconds of training in a round: its length, or less if its steps take less."""
    length = config.rounds.length * speed
    if rate is None:
        return length
    return min(length, config.rounds.inner_steps * config.training.batch_samples * sequence_len / rate)
