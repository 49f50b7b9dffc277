"""What torchrun runs on every rank: `python -m agent.job`."""

from __future__ import annotations

import sys

from agent.job.signals import leave_signals_to_agent


def main() -> int:
    """Run one rank; returns the exit code."""
    leave_signals_to_agent()  # first: libraries start threads, which inherit the signal mask
    from agent.job.window import main as run_rank

    return run_rank()


if __name__ == "__main__":
    sys.exit(main())
