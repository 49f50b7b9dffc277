"""Every error a person can meet, as one tree.

The text says what was wrong; `remedy` says what to do about it. The command
line prints both on one line and leaves with `exit_code`. `assert` is kept for
our own bugs.

CurtailError (1)
├── UsageError (2)          flags or settings that make no sense together
│   └── ConfigError         a run file with an unknown key, a wrong type or unit
├── NotFound (3)            a file, folder, region or checkpoint that is not there
├── DataError (1)           text, tokens, tokenizer or manifest that cannot be used
├── CheckpointError (1)     weights that are truncated, foreign or do not match
├── DiskError (1)           a full or read-only folder
├── AuthError (4)           a missing, wrong or revoked token or credential
├── Unreachable (5)         nobody answers at that address
│   └── Throttled           the controller asks to come again later
├── WireError (1)           a message that is not of the contract's form
├── Refused (7)             the controller says no to a stale or conflicting request
└── RefusedTransition (1)   an event that is forbidden in the present state
"""

from __future__ import annotations


class CurtailError(Exception):
    """Base of all errors that are shown to a person.

    Args:
        message: what was wrong, in one sentence without a full stop.
        remedy: what to do about it, in one sentence without a full stop.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


class UsageError(CurtailError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class NotFound(CurtailError):
    exit_code = 3


class DataError(CurtailError):
    pass


class CheckpointError(CurtailError):
    pass


class DiskError(CurtailError):
    pass


class AuthError(CurtailError):
    exit_code = 4


class Unreachable(CurtailError):
    exit_code = 5


class Throttled(Unreachable):
    pass


class WireError(CurtailError):
    pass


class Refused(CurtailError):
    exit_code = 7


class RefusedTransition(CurtailError):
    pass
