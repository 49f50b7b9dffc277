"""Signals of a rank: SIGTERM counts only if torchrun sent it.

Slurm (`scancel`, preemption, a time limit) and service managers send SIGTERM to every process of a
tree at once. The agent then drains its job, so the ranks must train on until their agent says so.
`agent.launcher` starts torchrun with SIGTERM, SIGINT, SIGHUP and SIGQUIT ignored, and ranks inherit
that. But torchrun uses SIGTERM, too: it ends the remaining ranks after one has failed. A rank that
waits for the failed one in a collective must then end at once, not when torchrun kills it 30 s later.
"""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_agent() -> None:
    """Ignore SIGTERM unless this process's parent sent it. Call it before other threads start. Not on macOS."""
    if not hasattr(signal, "sigwaitinfo"):
        return  # the sender of a signal is unknown, so torchrun has to kill
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), name="sigterm", daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)
