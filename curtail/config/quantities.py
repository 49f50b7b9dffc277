"""Quantities with units, and the bounds that only the run file uses.

They are annotations on the fields of sections, like those of messages (`curtail.wire.bounds`):
`length: Annotated[float, quantity("duration", low=0.1)] = 300.0`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from curtail.errors import ConfigError
from curtail.grid.reading import POUNDS_PER_MWH
from curtail.wire.bounds import Bound, Real, Whole

QUANTITY = re.compile(r"^\s*([-+]?\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*([A-Za-z/%]+)\s*$")

QUANTITIES: dict[str, dict[str, float]] = {
    "intensity": {"g/kWh": 1.0, "lb/MWh": POUNDS_PER_MWH},
    "power": {"W": 1.0, "kW": 1000.0, "MW": 1e6},
    "duration": {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0},
    "energy": {"Wh": 1.0, "kWh": 1000.0, "MWh": 1e6},
}

BOUNDS: dict[str, tuple[float, str]] = {
    "intensity": (1e9, "1e9 g/kWh"),
    "power": (1e9, "1000 MW"),
    "duration": (262_980 * 3600.0, "262980 h, 30 years"),
    "energy": (1e15, "1e9 MWh"),
}
"""Kind -> the largest absolute value, and its text for error messages. Larger values would not fit the messages."""

EXAMPLES = {"intensity": "100 g/kWh", "power": "2.024 kW", "duration": "60 s", "energy": "10 kWh"}


@dataclass(frozen=True, slots=True)
class Quantity(Real):
    """A number that is written with its unit; `low` and `high` are in the unit with factor 1."""

    kind: str = ""


def quantity(kind: str, *, low: float | None = 0.0, high: float | None = None) -> Quantity:
    """The bound of a quantity of a kind in `QUANTITIES`; None: the limit of the kind."""
    largest, _ = BOUNDS[kind]
    return Quantity(-largest if low is None else low, largest if high is None else high, kind)


@dataclass(frozen=True, slots=True)
class OneOf(Bound):
    """One of the given texts."""

    choices: tuple[str, ...]

    def fault(self, value: str) -> str | None:
        return None if value in self.choices else f"use one of {', '.join(self.choices)}"


@dataclass(frozen=True, slots=True)
class WholeOrWord(Whole):
    """A whole number, or in the file a `word` that stands for one."""

    word: str = ""
    stands_for: int = 0


Duration = Annotated[float, quantity("duration")]
Wattage = Annotated[float, quantity("power")]
Intensity = Annotated[float, quantity("intensity")]
SignedIntensity = Annotated[float, quantity("intensity", low=None)]
Share = Annotated[float, Real(0.0, 1.0)]
Positive = Annotated[int, Whole(1)]


def parse_quantity(kind: str, value: Any, where: str) -> float:
    """Convert `value`, such as "2.024 kW", to the unit of its `kind` with factor 1.

    Raises: ConfigError: names `where` and what to write instead.
    """
    units = QUANTITIES[kind]
    listed = ", ".join(units)
    if not isinstance(value, str):
        raise ConfigError(f"{where} = {value!r} has no unit", f'write for example "{EXAMPLES[kind]}" ({listed})')
    match = QUANTITY.match(value)
    if match is None:
        raise ConfigError(f"{where} = {value!r} is no quantity", f'write for example "{EXAMPLES[kind]}" ({listed})')
    if match[2] not in units:
        raise ConfigError(f"{where} = {value!r} has the wrong unit {match[2]!r}", f"use one of {listed}")
    number = float(match[1].replace("_", "")) * units[match[2]]
    largest, said = BOUNDS[kind]
    if abs(number) > largest:
        if number > 0:
            raise ConfigError(f"{where} = {value!r} is too large", f"at most {said} is allowed")
        raise ConfigError(f"{where} = {value!r} is too small", f"at least -{said} is needed")
    return number
