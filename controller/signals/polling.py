"""Polls a live feed in a separate thread and serves its last valid answer as readings.

The controller's steps never wait for the network. They see the last valid answer
with its own time, so that it ages while the feed does not answer. Each region has
its own exponential backoff after failures. Once the last value is too old, the
reading is unknown, with the failure as the reason. An implausible answer discards
the last value until the next valid one. Unix seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from controller.signals.answer import Feed, Known, SignalError, Unbelievable, believe
from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, unknown
from curtail.system.clock import Clock

log = logging.getLogger("curtail.signal")

FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 300.0
"""First and longest pause after failures; the pause doubles with each failure."""

STOP_S = 2.0
"""Longest wait for the thread at shutdown; a thread that hangs in the network ends with the process."""


@dataclass(frozen=True, slots=True)
class _State:
    """The state of one region; replaced as a whole, so that readers need no lock."""

    known: Known | None = None
    problem: str = ""  # why the last attempt failed; empty if it succeeded
    failures: int = 0  # in a row
    due: float = float("-inf")  # time of the next attempt


def pause_after(failures: int) -> float:
    """Seconds until the next attempt after this many failures in a row."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 10))


class PolledSource:
    """Readings and forecasts of a feed.

    Args:
        names: region of the run -> the feed's name for it.
        poll: s between two answers for a region.
        max_age: s after which a value counts as unknown.
    """

    def __init__(self, feed: Feed, names: Mapping[str, str], poll: float, max_age: float, clock: Clock) -> None:
        self._feed = feed
        self._names = dict(names)
        self._poll = poll
        self._max_age = max_age
        self._clock = clock
        self._states = {region: _State() for region in self._names}
        self._asking: tuple[str, float] | None = None  # region and since when
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signal", daemon=True)

    # -- called by the controller ------------------------------------------------

    def reading(self, region: str, now: float) -> Reading:
        """The reading of `region` at `now`; unknown, with a reason, if there is no valid one."""
        state, source = self._states[region], self._source(region)
        known = state.known
        if known is not None and now - known.reading.point_time <= self._max_age:
            return known.reading
        return unknown(region, now, source, self._silence(region, state, known, now))

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """The forecast in the last valid answer; None once that is too old."""
        known = self._states[region].known
        if known is None or now - known.reading.point_time > self._max_age:
            return None
        return known.forecast

    def second(self, region: str, now: float) -> Reading | None:
        """None: there is no second source."""
        return None

    def ended(self, now: float) -> bool:
        """False: a live feed may answer again."""
        return False

    def _silence(self, region: str, state: _State, known: Known | None, now: float) -> str:
        age = "" if known is None else f", the last value is {now - known.reading.point_time:.0f} s old"
        asking = self._asking
        if asking is not None and asking[0] == region and now - asking[1] >= 1.0:
            return f"{self._feed.name} has not answered for {now - asking[1]:.0f} s{age}"
        if state.problem:
            return f"{self._feed.name}: {state.problem}{age}; next attempt in {max(0.0, state.due - now):.0f} s"
        if known is not None and asking is not None:
            return f"{self._feed.name} has not answered for region {asking[0]} for {now - asking[1]:.0f} s{age}"
        return f"{self._feed.name} has not answered yet{age}"

    def _source(self, region: str) -> str:
        return f"{self._feed.name} {self._names[region]}"

    # -- the polling thread ------------------------------------------------------

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling, without waiting for a request under way."""
        self._end.set()
        self._thread.join(STOP_S)

    def poll(self) -> float:
        """Poll every region that is due. Returns: seconds until the next one is due."""
        for region, state in self._states.items():
            if self._end.is_set():
                break
            if state.due <= self._clock.wall():
                self._states[region] = self._ask(region, state)
        return max(0.0, min(state.due for state in self._states.values()) - self._clock.wall())

    def _run(self) -> None:
        while not self._end.is_set():
            self._end.wait(self.poll())

    def _ask(self, region: str, state: _State) -> _State:
        began = self._clock.wall()
        self._asking = (region, began)
        kept, least = state.known, 0.0
        try:
            answer = self._feed.fetch(self._names[region], began)
            now = self._clock.wall()
            known = believe(region, self._source(region), answer, now, self._max_age)
        except SignalError as error:
            problem, least = str(error), error.retry_s or 0.0
            kept = None if isinstance(error, Unbelievable) else kept
        except Exception as error:  # a plug-in may raise anything; then the region is unknown for this reason
            problem = f"failed with {type(error).__name__}: {error}"
        else:
            if state.problem:
                log.info("%s answers again", self._source(region))
            return _State(known, due=now + self._poll)
        finally:
            self._asking = None
        if problem != state.problem:
            log.warning("%s: %s", self._source(region), problem)
        failures = state.failures + 1
        return _State(kept, problem, failures, self._clock.wall() + max(least, pause_after(failures)))
