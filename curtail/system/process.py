"""Process termination: children die with their parent, and signals unwind the stack.

Linux can kill a process when its parent ends for any reason, including kill -9.
The request is tied to the thread that starts the process, so that thread must live
as long as the process should. On other systems these functions do nothing, and a
process whose parent was killed runs on until it notices by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent (process id `parent`) ends. Linux only."""
    dying_with(parent)()


def dying_with(parent: int) -> Callable[[], None]:
    """`die_with_parent` as a function to run between fork and exec (`preexec_fn`)."""
    # Loaded before the fork: the forked child of a multi-threaded process must not import or allocate much.
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    kill = int(signal.SIGKILL)

    def prepare() -> None:
        if library is not None:
            library.prctl(PR_SET_PDEATHSIG, kill, 0, 0, 0)
            if os.getppid() != parent:  # the parent ended before the call
                os._exit(128 + kill)

    return prepare


def die_with_starter(name: str, value: str) -> None:
    """`die_with_parent` for a process that calls it only seconds after its start. Linux only.

    The original parent may have ended by then, and another process may have adopted this one. So the parent must
    have the variable `name`=`value` in its environment; otherwise this process ends at once.
    """
    parent = os.getppid()
    die_with_parent(parent)
    try:
        with open(f"/proc/{parent}/environ", "rb") as file:
            belongs = f"{name}={value}".encode() in file.read().split(b"\0")
    except FileNotFoundError:
        belongs = not os.path.isdir("/proc/self")  # with /proc: the parent just ended; without: unknown, so carry on
    except OSError:
        belongs = parent != 1  # process 1 adopts orphans; for any other unreadable parent: unknown, so carry on
    if not belongs:
        os._exit(128 + int(signal.SIGKILL))


@contextlib.contextmanager
def on_signals(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle these signals with `handler` while the block runs, then restore the old handlers. Main thread only."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that cleanup code runs."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with on_signals((signal.SIGTERM, signal.SIGHUP), leave):
        yield
