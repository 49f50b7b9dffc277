"""A contribution under way while the ranks train on: one thread of rank 0.

Decides nothing about the model. It hands in what was made, asks for the next round
until it gets one and brings the base copy up to date; then it ends, with what the
controller said. A drain ends it as soon as the contribution is in. Units: seconds
of `Clock.monotonic`.
"""

from __future__ import annotations

import threading

from agent.job.contribution import Contributor, LocalUpdate
from agent.job.controller_link import ControllerLink, Work
from nanochat.weights import Shapes

CLOSING_S = 10.0
"""How long a job that drains waits for the merge, to hand in what it trained meanwhile."""


class UploadThread:
    """One contribution under way.

    Args: made: what is handed in; its arrays belong to this object until it has ended.
    """

    def __init__(self, contributor: Contributor, update: LocalUpdate, shapes: Shapes) -> None:
        self.update = update
        self.accepted = False
        self.reason = "handing in the contribution"
        self._contributor, self._shapes = contributor, shapes
        self._link: ControllerLink = contributor.link
        self._next: Work | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="contribution", daemon=True)

    def start(self) -> None:
        """Begin; to be called once."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether there is something to hear."""
        return not self._thread.is_alive()

    def join(self, seconds: float) -> bool:
        """Wait so many seconds at most; whether it has ended."""
        self._thread.join(seconds)
        return self.ended

    def result(self) -> Work:
        """What comes next, once it has ended: `train` or `leave`.

        Raises: whatever ended the contribution: AuthError, DiskError, CheckpointError and the like.
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
        except BaseException as error:  # raised again where somebody asks for the result
            self._error = error

    def _ask(self) -> Work:
        link = self._link
        while True:
            if reason := link.drain_reason():
                return Work("leave", reason)
            following = link.next(self._shapes)
            if following.kind != "wait":
                return following
            self.reason = following.reason
            with link.seconds("wait"):
                link.wait(max(0.05, following.retry_s))


def close(link: ControllerLink, shapes: Shapes, seconds: float = CLOSING_S) -> Work:
    """Ask for the round in which a draining job can hand in what it trained ahead; `leave`: there is none.

    Raises: as `ControllerLink.next`.
    """
    clock = link.clock
    end = clock.monotonic() + seconds
    reason = "the merge took too long"
    while clock.monotonic() < end:
        following = link.next(shapes, closing=True, stop=lambda: clock.monotonic() >= end)
        if following.kind != "wait":
            return following
        reason = following.reason
        clock.sleep(max(0.05, min(following.retry_s, end - clock.monotonic())))
    return Work("leave", reason)
