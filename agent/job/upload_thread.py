"""A contribution that travels while the ranks train on: one thread of rank 0.

Hands in a local update, asks for the next round until it gets one, and brings the base
weights up to date; then the thread ends, with what the controller said. A drain ends
it as soon as the contribution is committed. It uses neither model nor optimizer.
"""

from __future__ import annotations

import threading

from agent.job.contribution import Contributor, LocalUpdate
from agent.job.controller_link import ControllerLink, Work
from nanochat.weights import Shapes

CLOSING_S = 10.0
"""How long, in seconds, a job that drains waits for the merge, to hand in its overlapped steps."""


class UploadThread:
    """One contribution on its way.

    Args: update: is handed in; its arrays belong to this thread until it has ended.
    """

    def __init__(self, contributor: Contributor, update: LocalUpdate, shapes: Shapes) -> None:
        self.update = update
        self.accepted = False
        self.reason = "handing in the contribution"
        self._contributor, self._shapes = contributor, shapes
        self._next: Work | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="contribution", daemon=True)

    def start(self) -> None:
        """Begin; to be called once."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the result is there."""
        return not self._thread.is_alive()

    def join(self, seconds: float) -> bool:
        """Wait for at most `seconds`; returns whether the thread has ended."""
        self._thread.join(seconds)
        return self.ended

    def result(self) -> Work:
        """What comes next, once the thread has ended: `train` or `leave`.

        Raises: what ended the thread: AuthError, DiskError, CheckpointError and others.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._next is not None
        return self._next

    def _run(self) -> None:
        try:
            self.accepted = self._contributor.hand_in(self.update)
            self._next = self._ask()
        except BaseException as error:  # raised again by `result`
            self._error = error

    def _ask(self) -> Work:
        link = self._contributor.link
        while True:
            if reason := link.agent.drain_reason():
                return Work("leave", reason)
            work = link.next_work(self._shapes)
            if work.kind != "wait":
                return work
            self.reason = work.reason
            with link.seconds("wait"):
                link.agent.wait(max(0.05, work.retry_s))


def closing_work(link: ControllerLink, shapes: Shapes, seconds: float = CLOSING_S) -> Work:
    """Ask for the round in which a draining job can hand in its overlapped steps; `leave`: there is none.

    Raises: as `ControllerLink.next_work`.
    """
    clock = link.clock
    end = clock.monotonic() + seconds
    reason = "the merge took too long"
    while clock.monotonic() < end:
        work = link.next_work(shapes, closing=True, stop=lambda: clock.monotonic() >= end)
        if work.kind != "wait":
            return work
        reason = work.reason
        clock.sleep(max(0.05, min(work.retry_s, end - clock.monotonic())))
    return Work("leave", reason)
