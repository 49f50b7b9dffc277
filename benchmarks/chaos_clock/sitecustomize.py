"""Makes the wall clock of a process jump: for the chaos run, on PYTHONPATH of the processes it starts.

`time.time()` gives the machine's time plus the seconds that the file named by CURTAIL_CHAOS_CLOCK holds;
no file, no jump. Monotonic time stays as it is, as on a machine whose clock somebody sets.
"""

import os
import time

_path = os.environ.get("CURTAIL_CHAOS_CLOCK", "")
_real = time.time


def _jumping() -> float:
    try:
        with open(_path, encoding="ascii") as file:
            return _real() + float(file.read() or 0.0)
    except OSError:
        return _real()


if _path:
    time.time = _jumping
