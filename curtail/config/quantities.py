"""Quantities with their units, numbers with their bounds, and the fields of sections that hold them.

A field's metadata say what may stand in the file: a `quantity` of which kind, `low` and
`high` of the number, `choices` of a text, `words` that stand for a number.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, field
from typing import Any

from curtail.errors import ConfigError
from curtail.grid.reading import POUNDS_PER_MWH

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
"""Kind -> the largest number, either side of zero, and how to write it: it still fits the messages to the agents."""

EXAMPLES = {"intensity": "100 g/kWh", "power": "2.024 kW", "duration": "60 s", "energy": "10 kWh"}


def quantity(
    kind: str,
    default: float | object | None = MISSING,
    *,
    low: float | None = 0.0,
    high: float | None = None,
) -> Any:
    """A field for a quantity with its unit, of a kind in `QUANTITIES`; `low` and `high` in the unit it is kept in."""
    metadata = {"quantity": kind, "low": low, "high": high}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def number(default: Any = MISSING, *, low: float | None = None, high: float | None = None) -> Any:
    """A field for a number without a unit, from `low` to `high`."""
    metadata = {"low": low, "high": high}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_quantity(kind: str, value: Any, where: str) -> float:
    """`value`, such as "2.024 kW", in the unit of its `kind` that has the factor 1.

    Raises: ConfigError: names `where`, and what to write instead.
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
