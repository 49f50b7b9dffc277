"""A token bucket: so many tokens per second in the long run, and so many at once.

Pure: the time is an argument, in seconds of any clock; a clock that goes back
adds nothing. A token is whatever the caller limits: a request, a byte.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """What may be taken now. Not safe for threads: the caller holds a lock if it has several."""

    rate: float  # tokens per second, above 0
    burst: float  # most tokens that gather while none is taken
    level: float  # tokens at `at`; below 0 is a debt
    at: float  # seconds

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> TokenBucket:
        """A bucket that nobody took from yet."""
        return cls(rate, burst, burst, now)

    def ask(self, now: float, tokens: float = 1.0) -> float:
        """Take `tokens` if they are there.

        Returns: 0 if they were; else the seconds after which they would be, and nothing is taken.
        """
        self._refill(now)
        if self.level >= tokens:
            self.level -= tokens
            return 0.0
        return (tokens - self.level) / self.rate

    def take(self, now: float, tokens: float) -> float:
        """Take `tokens` in any case, on credit if need be.

        Returns: seconds to wait before they are used.
        """
        self._refill(now)
        self.level -= tokens
        return max(0.0, -self.level / self.rate)

    def _refill(self, now: float) -> None:
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.rate)
        self.at = now
