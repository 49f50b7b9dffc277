"""Caps on provisioned machines: number, price per hour, money per day. Pure. Prices are per machine and hour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DAY_S, HOUR_S = 86_400.0, 3600.0


@dataclass(frozen=True, slots=True)
class Charge:
    """The time for which a machine existed; `ended` None: it still does."""

    price: float
    begun: float  # Unix seconds
    ended: float | None


@dataclass(frozen=True, slots=True)
class Caps:
    """The caps of the run; None: no limit."""

    most_machines: int | None
    most_per_hour: float | None
    most_per_day: float | None


def spent(charges: Iterable[Charge], now: float, until: float) -> float:
    """Money spent in the 24 hours before `until`, if the machines that exist at `now` stay until then."""
    total = 0.0
    for charge in charges:
        end = until if charge.ended is None else charge.ended
        total += charge.price * max(0.0, min(end, until) - max(charge.begun, until - DAY_S)) / HOUR_S
    return total


def forbids_request(caps: Caps, charges: Sequence[Charge], price: float, now: float, reserve_s: float) -> str:
    """Why no further machine of this price may be requested; "": it may.

    Args: reserve_s: seconds that each machine still costs after its release is decided: its grace, and two polls.
    """
    existing = [charge for charge in charges if charge.ended is None]
    if caps.most_machines is not None and len(existing) >= caps.most_machines:
        return f"[provision] most_machines = {caps.most_machines} machines exist"
    rate = sum(charge.price for charge in existing) + price
    if caps.most_per_hour is not None and rate > caps.most_per_hour:
        return f"with it the machines would cost {rate:g} per hour; [provision] most_per_hour = {caps.most_per_hour:g}"
    if caps.most_per_day is not None and price > 0:
        with_it = [*charges, Charge(price, now, None)]
        if spent(with_it, now, now + reserve_s) > caps.most_per_day:
            return _day_spent(caps, charges, now)
    return ""


def forbids_staying(caps: Caps, charges: Sequence[Charge], now: float, reserve_s: float) -> str:
    """Why machines with a price must be released now; "": they may stay."""
    if caps.most_per_day is None or spent(charges, now, now + reserve_s) <= caps.most_per_day:
        return ""
    return _day_spent(caps, charges, now)


def _day_spent(caps: Caps, charges: Sequence[Charge], now: float) -> str:
    return (
        f"{spent(charges, now, now):.2f} were spent within 24 hours; [provision] most_per_day = {caps.most_per_day:g}"
    )
