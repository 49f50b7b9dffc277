"""How processes end: with the one that started them, and in order when a signal asks.

Linux can kill a process when its parent ends, whatever ended the parent; kill
-9 included. The request is tied to the thread that starts the process, so that
thread has to live as long as the process shall. Elsewhere nothing happens here,
and a process whose parent was killed lives on until it notices by itself.
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
    """Let the kernel kill this process when its parent, of process id `parent`, ends. Linux only."""
    dying_with(parent)()


def dying_with(parent: int) -> Callable[[], None]:
    """`die_with_parent` as a function to run between fork and exec (`preexec_fn`)."""
    # Loaded before the fork: a child of a process with threads must not import or allocate much.
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    kill = int(signal.SIGKILL)

    def prepare() -> None:
        if library is not None:
            library.prctl(PR_SET_PDEATHSIG, kill, 0, 0, 0)
            if os.getppid() != parent:  # it ended before the call
                os._exit(128 + kill)

    return prepare


def die_with_starter(name: str, value: str) -> None:
    """`die_with_parent`, for a process that reads this only seconds after it was started. Linux only.

    Its parent may be gone by then, and somebody else's process in its place; so the parent must have the variable
    `name`=`value` in its environment, else this process ends at once.
    """
    parent = os.getppid()
    die_with_parent(parent)
    try:
        with open(f"/proc/{parent}/environ", "rb") as file:
            belongs = f"{name}={value}".encode() in file.read().split(b"\0")
    except FileNotFoundError:
        belongs = not os.path.isdir("/proc/self")  # it ended a moment ago; elsewhere nothing can be told
    except OSError:
        belongs = parent != 1  # the first process takes orphans; of another one that hides nothing can be told
    if not belongs:
        os._exit(128 + int(signal.SIGKILL))


@contextlib.contextmanager
def on_signals(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle these signals while the block runs, as before afterwards. Main thread only."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that whatever was begun is ended."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with on_signals((signal.SIGTERM, signal.SIGHUP), leave):
        yield
