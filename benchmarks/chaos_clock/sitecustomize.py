"""What the chaos run changes inside the processes it starts, which have this folder on their PYTHONPATH.

The wall clock jumps: `time.time()` gives the machine's time plus the seconds that the file named by
CURTAIL_CHAOS_CLOCK holds; no file, no jump. Monotonic time stays as it is, as on a machine whose clock
somebody sets. And with CURTAIL_CHAOS_PACE the training steps of a job are paced (`chaos_pace`).
"""

import os
import sys
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
if "CURTAIL_JOB" in os.environ and float(os.environ.get("CURTAIL_CHAOS_PACE", "0")) > 0:
    from chaos_pace import PacedTrainer

    sys.meta_path.insert(0, PacedTrainer(float(os.environ["CURTAIL_CHAOS_PACE"])))
