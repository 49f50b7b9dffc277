"""What a check finds, and that no check can end the doctor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from curtail.errors import CurtailError


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    found: str
    remedy: str = ""


Check = Callable[[], list[Finding]]


def fine(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, remedy: str) -> Finding:
    """It works, or may work, but somebody should know."""
    return Finding(check, Level.WARN, found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    """It will not work like this."""
    return Finding(check, Level.FAIL, found, remedy)


def examine(name: str, check: Check) -> list[Finding]:
    """What `check` finds; if it breaks down itself, that is a finding too."""
    try:
        return check()
    except CurtailError as error:
        return [fail(name, error.message, error.remedy or "see the documentation of this part")]
    except Exception as error:
        return [fail(name, f"this check broke down: {type(error).__name__}: {error}", "report it with this line")]
