"""The answers that many paths have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ack:
    """A request was carried out."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """Any refused request: what was wrong and what to do."""

    error: str  # name of the CurtailError
    message: str
    remedy: str
