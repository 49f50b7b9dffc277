"""Progress of downloads: bars on a terminal, and a line for each finished file.

Writes to stderr only. Ends a download when the command stops. The bars are huggingface_hub's, so its switches apply
(HF_HUB_DISABLE_PROGRESS_BARS). Sizes in bytes.
"""

from __future__ import annotations

import sys
import threading
from typing import IO, Any

from curtail.errors import CurtailError, Unreachable

MOST_RESTARTS = 6
"""How often one download may restart at its first byte, as it does if a host does not support ranges."""


class FetchStopped(CurtailError):
    """The command was stopped; the partial file is kept for the next one."""


class TransferProgress:
    """Shows the progress of `total` files. Thread-safe.

    Args: stop: set when the downloads are to end. stream: where the lines go, stderr if not given.
    """

    def __init__(self, total: int, stop: threading.Event, stream: IO[str] | None = None) -> None:
        self._total, self._stop, self._stream = total, stop, stream or sys.stderr
        self._finished = 0
        self._lock = threading.Lock()

    def done(self, name: str, size: int) -> None:
        """Report a finished, verified file of `size` bytes."""
        with self._lock:
            self._finished += 1
            self.say(f"{name}: {size / 1e6:,.1f} MB ({self._finished} of {self._total})")

    def say(self, text: str) -> None:
        """Print a permanent line above the bars."""
        from huggingface_hub.utils import tqdm

        tqdm.write(text, file=self._stream)
        self._stream.flush()

    def bar_class(self, name: str) -> type[Any]:
        """The class of the bar for the download of `name` by huggingface_hub, which calls its `update` with each piece.

        `update` raises FetchStopped once `stop` is set, and Unreachable after MOST_RESTARTS; the library itself would
        retry forever.
        """
        from huggingface_hub.utils import tqdm

        stop = self._stop

        class Bar(tqdm):
            restarts = 0

            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **{**options, "leave": False})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> bool:
                if stop.is_set():
                    raise FetchStopped("the download was stopped")
                self.restarts += n is not None and n < 0  # the discarded bytes of a restart
                if self.restarts > MOST_RESTARTS:
                    raise Unreachable(f"the transfer of {name} always breaks off", "try another source")
                return bool(super().update(n))

        return Bar
