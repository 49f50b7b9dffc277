"""A limit on what a job's uploads and downloads take of the link, so that other traffic gets through.

Decides how long a piece must wait before it is moved. `Link` shares one token
bucket between the threads of a job. Without a limit nothing here is used. Units: bytes, bytes per second, seconds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

from curtail.errors import UsageError
from curtail.system.clock import Clock
from curtail.system.token_bucket import TokenBucket

BURST_S = 0.05
"""How much may be moved at once, as time at the limited rate: short, so that a heartbeat waits no longer."""

PIECE = 16 * 1024
"""Bytes sent between two looks at the bucket, at least."""

SLOWEST = 32_000.0
"""The least limit, 256 kbit/s: a controller ends bodies that come slower than 4 KiB/s, and four travel at a time."""

_UNITS = {"kbit/s": 125.0, "mbit/s": 125e3, "gbit/s": 125e6, "kb/s": 1e3, "mb/s": 1e6, "gb/s": 1e9}
_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z/]+)\s*")


def parse_rate(text: str) -> float:
    """Bytes per second from a text such as `100Mbit/s` or `12.5 MB/s`; prefixes are powers of 1000.

    Raises: UsageError: no number with such a unit, or less than `SLOWEST`.
    """
    found = _FORM.fullmatch(text)
    rate = float(found[1]) * _UNITS.get(found[2].lower(), 0.0) if found else 0.0
    if rate <= 0:
        raise UsageError(
            f"{text!r} is no rate of a link", "write for example 100Mbit/s; units are kbit/s to Gbit/s and kB/s to GB/s"
        )
    if rate < SLOWEST:
        raise UsageError(
            f"a link of {text} is too slow for the weights of a model", "give 256kbit/s or more, 100Mbit/s"
        )
    return rate


class Link:
    """One limit for all transfers of a job, from any thread.

    Args: rate: bytes per second, both directions together.
    """

    def __init__(self, rate: float, clock: Clock) -> None:
        self.rate, self._clock, self._lock = rate, clock, threading.Lock()
        burst = max(float(PIECE), rate * BURST_S)
        self._bucket = TokenBucket.full(rate, burst, clock.monotonic())

    def wait(self, size: int) -> None:
        """Return as soon as `size` more bytes may be moved."""
        with self._lock:
            seconds = self._bucket.take(self._clock.monotonic(), size)
        if seconds > 0:
            self._clock.sleep(seconds)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """`data` in pieces, each when it may be sent."""
        size = max(PIECE, int(self.rate * BURST_S))
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self.wait(len(piece))
            yield piece
