"""Orders of a person: train, or pause, whatever the grid of a region emits.

An order is limited in time, durable, an event, and in force for one region at a
time; a newer one takes the place of an older one. What is trained under it is
booked as not curtailed (`curtail.override`). Methods run inside one transaction on
the store's thread; times are the controller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.members import Event
from controller.rows import OverrideRow
from controller.store import Transaction
from curtail import wire
from curtail.errors import NotFound, WireError
from curtail.override import LONGEST_S, Override

ACTIONS = ("train", "pause", "clear")

LONGEST_TEXT = 200
"""Characters of a reason, or of a name."""


class Orders:
    """The orders in force."""

    def __init__(self, regions: Iterable[str], event: Event) -> None:
        self._regions = tuple(regions)
        self._event = event
        self._standing: dict[str, Override] = {}

    def restore(self, tx: Transaction, now: float) -> None:
        """Take up what was in force when the controller stopped."""
        self._standing = {row.region: _override(row) for row in tx.standing_overrides(now)}

    def of(self, region: str, now: float) -> Override | None:
        """The order that holds for `region` at `now`."""
        order = self._standing.get(region)
        return order if order is not None and order.holds(now) else None

    def place(self, tx: Transaction, request: wire.OverrideRequest, now: float, wall: float) -> None:
        """Carry out what a person orders.

        Raises: NotFound: no such region. WireError: no such action, no name or reason, too long a time.
        """
        if request.region not in self._regions:
            raise NotFound(f"the run has no region {request.region!r}", f"use one of {', '.join(self._regions)}")
        if request.action not in ACTIONS:
            raise WireError(f"there is no order {request.action!r}", f"use one of {', '.join(ACTIONS)}")
        by, why = request.by.strip(), request.reason.strip()
        if not by or len(by) > LONGEST_TEXT:
            raise WireError("an order names who gives it", f"give a name of at most {LONGEST_TEXT} characters")
        if request.action == "clear":
            self._clear(tx, request.region, by, now)
            return
        if not why or len(why) > LONGEST_TEXT:
            raise WireError("an order says why it is given", f"give --reason, at most {LONGEST_TEXT} characters")
        if not 0 < request.seconds <= LONGEST_S:
            raise WireError(
                f"an order cannot last {request.seconds:g} s", f"give a time of at most {LONGEST_S / 3600:.0f} hours"
            )
        order = Override(request.action == "train", now, now + request.seconds, by, why)
        tx.end_overrides(request.region, now)
        tx.add_override(
            OverrideRow(request.region, int(order.train), order.since, order.until, order.by, order.why, wall, None)
        )
        self._standing[request.region] = order
        self._event(tx, "order", f"{request.region}: {order.reason(now)}")

    def _clear(self, tx: Transaction, region: str, by: str, now: float) -> None:
        if self.of(region, now) is None:
            raise NotFound(f"no order is in force for region {region}", "`curtail override list` shows those that are")
        tx.end_overrides(region, now)
        del self._standing[region]
        self._event(tx, "order", f"{region}: {by} took the order back")

    def expire(self, tx: Transaction, now: float) -> None:
        """Say it when an order has run out."""
        for region in [region for region, order in self._standing.items() if not order.holds(now)]:
            order = self._standing.pop(region)
            what = "train" if order.train else "pause"
            self._event(tx, "order", f"{region}: the order of {order.by} to {what} has run out")


def _override(row: OverrideRow) -> Override:
    return Override(bool(row.train), row.since, row.until, row.by_whom, row.reason)
