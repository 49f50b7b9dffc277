"""How far several transfers are: bars on a terminal, a line for each finished file elsewhere.

Decides only what is shown, always on stderr. Both forms may be called from
several threads, and both are ended with their `with` block, so that the terminal
is left as it was. Sizes in bytes.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import IO, Any, Protocol, Self


class Transfers(Protocol):
    """Where a command tells how far its transfers are."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def at(self, name: str, have: int, size: int | None) -> None:
        """`have` bytes of the file are there; `size` is the whole, if known."""
        ...

    def done(self, name: str, size: int) -> None:
        """The file is there, checked, and has `size` bytes."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


def transfers(total: int, stream: IO[str] | None = None) -> Transfers:
    """The form that fits `stream` (stderr if not given), for `total` files."""
    stream = stream or sys.stderr
    return Bars(total, stream) if stream.isatty() else Lines(total, stream)


class Lines:
    """A line for each finished file."""

    def __init__(self, total: int, stream: IO[str]) -> None:
        self._total, self._stream = total, stream
        self._finished = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def at(self, name: str, have: int, size: int | None) -> None:
        pass

    def done(self, name: str, size: int) -> None:
        with self._lock:
            self._finished += 1
            self._print(f"{name}: {size / 1e6:,.1f} MB ({self._finished} of {self._total})")

    def say(self, text: str) -> None:
        with self._lock:
            self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Bars:
    """A bar for each file under way."""

    def __init__(self, total: int, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            console=self._console, transient=True,
        )  # fmt: skip
        self._total, self._finished = total, 0
        self._bars: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def at(self, name: str, have: int, size: int | None) -> None:
        with self._lock:
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=size, completed=have)
            self._progress.update(self._bars[name], completed=have, total=size)

    def done(self, name: str, size: int) -> None:
        with self._lock:
            if name in self._bars:
                self._progress.remove_task(self._bars.pop(name))
            self._finished += 1
            self._console.print(f"{name}: {size / 1e6:,.1f} MB ({self._finished} of {self._total})", markup=False)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
