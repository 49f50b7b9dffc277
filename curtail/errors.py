"""Every error that curtail reports to a user, as one class hierarchy with exit codes.

The message says what was wrong; `remedy` says what to do about it. The command
line prints both on one line and exits with `exit_code`. `assert` is reserved
for bugs in curtail itself.

CurtailError (1)
├── UsageError (2)          invalid flags or settings, or an invalid combination of them
│   └── ConfigError         a run file with an unknown key, a wrong type or a wrong unit
├── NotFound (3)            a file, folder, region or checkpoint that does not exist
├── DataError (1)           unusable text, tokens, tokenizer or manifest
├── CheckpointError (1)     weights that are truncated, incompatible or inconsistent
├── DiskError (1)           a full or read-only folder
├── AuthError (4)           a missing, wrong or revoked token or credential
├── Unreachable (5)         no answer from that address
│   └── Throttled           the controller's rate limit was hit; retry later
├── WireError (1)           a message that violates the wire protocol
├── Refused (7)             a stale or conflicting request, rejected by the controller
└── RefusedTransition (1)   an event that is not allowed in the present state
"""

from __future__ import annotations


class CurtailError(Exception):
    """Base class of all errors that are shown to a user.

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
