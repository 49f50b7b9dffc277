"""Bandwidth limit for a job's uploads and downloads: a token bucket.

`Link` shares one token bucket between the threads of a job, and decides how long a
piece must wait before it is sent. Without a limit this module is not used. Units:
bytes, bytes per second, seconds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

from curtail.errors import UsageError
from curtail.system.clock import Clock
from curtail.system.token_bucket import TokenBucket

BURST_S = 0.05
"""Burst size, as time at the limited rate. It is short, so that a heartbeat waits no longer than this."""

PIECE = 16 * 1024
"""Smallest number of bytes that are sent between two checks of the bucket."""

SLOWEST = 32_000.0
"""Lowest limit, 256 kbit/s. The controller aborts bodies slower than 4 KiB/s, and four are sent in parallel."""

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
            f"{text!r} is not a bandwidth", "write for example 100Mbit/s; units are kbit/s to Gbit/s and kB/s to GB/s"
        )
    if rate < SLOWEST:
        raise UsageError(
            f"{text} is too slow to transfer the weights of a model", "give at least 256kbit/s, for example 100Mbit/s"
        )
    return rate


class Link:
    """One limit for all transfers of a job; thread-safe.

    Args: rate: bytes per second, both directions together.
    """

    def __init__(self, rate: float, clock: Clock) -> None:
        self.rate, self._clock, self._lock = rate, clock, threading.Lock()
        burst = max(float(PIECE), rate * BURST_S)
        self._bucket = TokenBucket.full(rate, burst, clock.monotonic())

    def wait(self, size: int) -> None:
        """Block until `size` more bytes may be sent or received."""
        with self._lock:
            seconds = self._bucket.take(self._clock.monotonic(), size)
        if seconds > 0:
            self._clock.sleep(seconds)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield `data` in pieces, each as soon as it may be sent."""
        size = max(PIECE, int(self.rate * BURST_S))
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self.wait(len(piece))
            yield piece
