"""Overrides by an operator: train or pause in a region, whatever its signal says.

An override is durable, limited in time, and written as an event. A region has at most
one; a newer one replaces it. Because it decides when a site trains, its begin and end
are records of the hash chain (`curtail.carbon.hash_chain`). Training
under it is booked as not curtailed (`curtail.policy.override`). Methods run inside one
transaction on the store's thread; times are the controller's clock, wall Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import OrderRow
from curtail import wire
from curtail.errors import NotFound, WireError
from curtail.policy.override import LONGEST_S, Override

ACTIONS = ("train", "pause", "clear")

LONGEST_TEXT = 200
"""Longest reason or name, in characters."""


class Overrides:
    """The overrides in force."""

    def __init__(self, regions: Iterable[str], event: Event) -> None:
        self._regions = tuple(regions)
        self._event = event
        self._standing: dict[str, tuple[int, Override]] = {}  # region -> id of the row, and the order

    def restore(self, tx: Transaction) -> None:
        """Load the overrides that had not ended when the controller stopped; `expire` ends those that have run out."""
        self._standing = {row.region: (number, _override(row)) for number, row in tx.open_orders()}

    def of(self, region: str, now: float) -> Override | None:
        """The override in force for `region` at `now`; None: there is none."""
        _, order = self._standing.get(region, (0, None))
        return order if order is not None and order.holds(now) else None

    def place(self, tx: Transaction, request: wire.OverrideRequest, now: float, wall: float) -> None:
        """Apply an operator's request.

        Raises: NotFound: no such region. WireError: unknown action, name or reason missing, time too long.
        """
        if request.region not in self._regions:
            raise NotFound(f"the run has no region {request.region!r}", f"use one of {', '.join(self._regions)}")
        if request.action not in ACTIONS:
            raise WireError(f"there is no order {request.action!r}", f"use one of {', '.join(ACTIONS)}")
        by, why = request.by.strip(), request.reason.strip()
        if not by or len(by) > LONGEST_TEXT:
            raise WireError("an order names who gives it", f"give a name of at most {LONGEST_TEXT} characters")
        if request.action == "clear":
            self._clear(tx, request.region, by, now, wall)
            return
        if not why or len(why) > LONGEST_TEXT:
            raise WireError("an order says why it is given", f"give --reason, at most {LONGEST_TEXT} characters")
        if not 0 < request.seconds <= LONGEST_S:
            raise WireError(
                f"an order cannot last {request.seconds:g} s", f"give a time of at most {LONGEST_S / 3600:.0f} hours"
            )
        self.expire(tx, now, wall)
        order = Override(request.action == "train", now, now + request.seconds, by, why)
        self._end(tx, request.region, "replaced", now, by, wall)
        row = OrderRow(None, request.action, request.region, order.since, order.until, by, why, wall)
        self._set(tx, request.region, (tx.add_order(row), order))
        self._event(tx, "order", f"{request.region}: {order.reason(now)}")

    def _clear(self, tx: Transaction, region: str, by: str, now: float, wall: float) -> None:
        if self.of(region, now) is None:
            raise NotFound(f"no order is in force for region {region}", "`curtail override list` shows those that are")
        self._end(tx, region, "cleared", now, by, wall)
        self._event(tx, "order", f"{region}: {by} took the order back")

    def expire(self, tx: Transaction, now: float, wall: float) -> None:
        """End the overrides that have run out, with an event each."""
        for region, (_, order) in list(self._standing.items()):
            if now >= order.until:
                self._end(tx, region, "expired", order.until, "", wall)
                what = "train" if order.train else "pause"
                self._event(tx, "order", f"{region}: the order of {order.by} to {what} has run out")

    def _end(self, tx: Transaction, region: str, act: str, at: float, by: str, wall: float) -> None:
        """Record the end of the region's override, if it has one."""
        if region in self._standing:
            number, _ = self._standing[region]
            tx.add_order(OrderRow(number, act, region, at, None, by, "", wall))
            self._set(tx, region, None)

    def _set(self, tx: Transaction, region: str, standing: tuple[int, Override] | None) -> None:
        """Set the region's override in memory; undone if the transaction fails."""
        before = dict(self._standing)

        def undo() -> None:
            self._standing = before

        tx.after_rollback.append(undo)
        if standing is None:
            del self._standing[region]
        else:
            self._standing[region] = standing


def _override(row: OrderRow) -> Override:
    assert row.until is not None, "an order is limited in time"
    return Override(row.act == "train", row.at, row.until, row.by_whom, row.reason)
