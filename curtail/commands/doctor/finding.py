"""Findings of the doctor's checks; an exception in a check becomes a finding, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from curtail.errors import CurtailError


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    check: str
    level: Level
    found: str
    remedy: str = ""


Check = Callable[[], list[Finding]]


def fine(check: str, found: str) -> Finding:
    """A finding without a problem."""
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, remedy: str) -> Finding:
    """A finding that does not prevent operation, but deserves attention."""
    return Finding(check, Level.WARN, found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    """A finding that prevents operation."""
    return Finding(check, Level.FAIL, found, remedy)


def examine(name: str, check: Check) -> list[Finding]:
    """Run `check`; an exception in it becomes a finding, too."""
    try:
        return check()
    except CurtailError as error:
        return [fail(name, error.message, error.remedy or "see the documentation of this part")]
    except Exception as error:
        return [
            fail(name, f"this check failed unexpectedly: {type(error).__name__}: {error}", "report it with this line")
        ]
