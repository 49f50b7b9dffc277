"""What every provisioner can do, and the command runner that drivers use.

A driver has no state: it asks its provisioner. `ensure` is idempotent: a machine that
exists is never made a second time. Calls may take seconds, so `controller.provision.calls` makes them in its thread.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.provision.lifecycle import Observed
from curtail.errors import CurtailError
from curtail.system.process import dying_with

CALL_S = 60.0
"""Wall seconds that one call of a client program may take."""

SHOWN = 300
"""Most characters of a program's error message that are reported."""


class ProvisionError(CurtailError):
    """A provisioner refused or could not be asked."""


@dataclass(frozen=True, slots=True)
class Request:
    """A machine to be made."""

    run: str
    site: str
    region: str
    machine: int  # from 0
    machines: int  # of the site
    key: str  # stable name of this request
    url: str  # of the controller
    token: str  # single-use join token; it must not appear in argv, nor in anything that other users can read
    seconds: float  # wall time after which the machine must end by itself
    grace_s: float  # of it, for draining
    options: tuple[str, ...] = ()  # further options of `curtail agent join`


class Driver(Protocol):
    """One provisioner of one site."""

    def ensure(self, request: Request) -> Observed:
        """Make the machine unless it exists. Raises: ProvisionError."""
        ...

    def release(self, observed: Observed, grace_s: float, now: bool) -> None:
        """Ask a machine to drain; with `now` end it. No error if it has ended. Raises: ProvisionError."""
        ...

    def observe(self) -> list[Observed]:
        """All machines of the run's site that exist. Raises: ProvisionError."""
        ...


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended."""

    code: int
    out: str
    err: str


class Runs(Protocol):
    """Runs a program; tests pass a fake."""

    def __call__(self, argv: Sequence[str], text: str = "") -> Completed: ...


def run_program(argv: Sequence[str], text: str = "") -> Completed:
    """Run a program with `text` as its standard input. Raises: ProvisionError: it cannot be run, or takes too long."""
    try:
        done = subprocess.run(
            list(argv), input=text, capture_output=True, text=True, timeout=CALL_S, check=False,
            preexec_fn=dying_with(os.getpid()),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ProvisionError(f"{argv[0]} did not answer within {CALL_S:.0f} s") from None
    except OSError as error:
        raise ProvisionError(f"{argv[0]} could not be run: {error.strerror or error}") from error
    return Completed(done.returncode, done.stdout, done.stderr)


def output_of(run: Runs, argv: Sequence[str], text: str = "") -> str:
    """Standard output of a program. Raises: ProvisionError: it failed; quotes its error."""
    done = run(argv, text)
    if done.code != 0:
        said = (done.err.strip() or done.out.strip() or "without a message").splitlines()[-1][:SHOWN]
        raise ProvisionError(f"{' '.join(argv[:2])} failed with {done.code}: {said}")
    return done.out
