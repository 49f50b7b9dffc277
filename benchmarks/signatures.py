"""What signed requests cost: seconds of CPU to sign a heartbeat, to verify it, and to detect replays.

PYTHONPATH=. python benchmarks/signatures.py
"""

from __future__ import annotations

import time

from controller.auth.nonces import NonceCache
from curtail import wire
from curtail.security import signing
from curtail.security.signing import AgentKey, Signer

COUNT = 5000
KEYS = 1000


def main() -> None:
    """Sign and check `COUNT` heartbeats of `KEYS` machines, in turn."""
    keys = [AgentKey() for _ in range(KEYS)]
    signers, public = [Signer(key, time.time, 1) for key in keys], [key.public for key in keys]
    body = wire.encode(wire.Heartbeat("a" * 32, "site", 1, "TRAINING", "train", "job", 900.0, ""))
    began = time.process_time()
    headers = [signers[n % KEYS].header("POST", wire.HEARTBEAT, body) for n in range(COUNT)]
    signed = time.process_time()
    now = time.time()
    stamps = [signing.read_stamp(header) for header in headers]
    for n, stamp in enumerate(stamps):
        signing.verify_signature(stamp, public[n % KEYS], "POST", wire.HEARTBEAT, body, now)
    checked = time.process_time()
    nonces = NonceCache()
    for n, stamp in enumerate(stamps):
        nonces.consume(public[n % KEYS], stamp, now)
    taken = time.process_time()
    each = 1e6 / COUNT
    print(f"sign {(signed - began) * each:.0f} us, check {(checked - signed) * each:.0f} us,", end=" ")
    print(f"replay {(taken - checked) * each:.1f} us, {nonces.count()} lives remembered")


if __name__ == "__main__":
    main()
