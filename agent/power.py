"""Measured power of this machine's devices, in watts.

Decides only what a heartbeat says about power. `None` means not measured: the
controller then uses the run file's model of the site. A meter that reads the
devices goes beside `ConstantMeter`; it must return `None`, never a guess, when
a reading fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class PowerMeter(Protocol):
    """Where watts come from."""

    def watts(self) -> float | None:
        """Power of this machine's devices now, or None if it is not measured."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantMeter:
    """Always the same answer; None by default: not measured."""

    value: float | None = None

    def watts(self) -> float | None:
        """The fixed answer."""
        return self.value
