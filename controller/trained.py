"""How much a job has trained, from what it says of its rounds: no step counts twice.

A job counts steps from the beginning of a round, and those made ahead while a
contribution travels first as further ones of the old round, then as the first ones of
the next. So its count is what it committed before a round, and what it says of that
round; what grows is counted. Steps that are dropped and made again count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass


@dataclass(slots=True)
class Trained:
    """Steps and tokens of one job."""

    round: int = 0  # of its latest commit
    steps_before: int = 0  # committed in earlier rounds than that one
    tokens_before: int = 0
    steps_committed: int = 0  # with that one
    tokens_committed: int = 0
    steps: int = 0  # counted
    tokens: int = 0

    def said(self, number: int, steps: int, tokens: int) -> tuple[int, int]:
        """The job has made so many in round `number`; by how much the count grows."""
        if number < self.round:
            return 0, 0
        if number == self.round:
            return self._grow(self.steps_before + steps, self.tokens_before + tokens)
        return self._grow(self.steps_committed + steps, self.tokens_committed + tokens)

    def committed(self, number: int, steps: int, tokens: int) -> tuple[int, int]:
        """It committed so many of round `number`; by how much the count grows. A repeat is passed over."""
        if number <= self.round:
            return 0, 0
        self.round = number
        self.steps_before, self.tokens_before = self.steps_committed, self.tokens_committed
        self.steps_committed += steps
        self.tokens_committed += tokens
        return self._grow(self.steps_committed, self.tokens_committed)

    def _grow(self, steps: int, tokens: int) -> tuple[int, int]:
        more = max(0, steps - self.steps), max(0, tokens - self.tokens)
        self.steps, self.tokens = self.steps + more[0], self.tokens + more[1]
        return more

    def kept(self) -> list[int]:
        """What the store keeps of it."""
        return list(astuple(self))

    @staticmethod
    def of(kept: Sequence[int]) -> Trained:
        """The count that was kept."""
        return Trained(*kept)
