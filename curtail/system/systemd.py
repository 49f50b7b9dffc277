"""Telling systemd that a process is ready, alive and about to end: sd_notify(3), in a few lines.

A ping is a promise that the main loop makes progress, so it is called from
inside that loop and nowhere else. Without systemd, or without a watchdog in
the unit, nothing is sent. Seconds of a monotonic clock.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def send_datagram(address: str, message: bytes) -> None:
    """One message to the socket `address`; a leading @ is the abstract name space. Raises: OSError."""
    place = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)  # a full queue must not hold up the loop
        sender.sendto(message, place)


class Notifier:
    """What this process says of itself.

    Args: address: of systemd's socket, "" if there is none. every: seconds between two pings; 0: no watchdog.
    """

    def __init__(
        self, address: str = "", every: float = 0.0, send: Callable[[str, bytes], None] = send_datagram
    ) -> None:
        self._address, self.every, self._send = address, every, send
        self._last: float | None = None

    def ready(self) -> None:
        """The process does its work from now on."""
        self._tell(b"READY=1")

    def stopping(self) -> None:
        """It was asked to end, and does."""
        self._tell(b"STOPPING=1")

    def alive(self, now: float) -> None:
        """The main loop came around; pings if one is due."""
        if self.every > 0 and (self._last is None or now - self._last >= self.every):
            self._last = now
            self._tell(b"WATCHDOG=1")

    def _tell(self, message: bytes) -> None:
        if self._address:
            # Without an answer systemd ends the process, and its log says why.
            with contextlib.suppress(OSError):
                self._send(self._address, message)


def take_notifier(environment: MutableMapping[str, str], pid: int | None = None) -> Notifier:
    """The notifier that systemd's variables describe; they are taken out, since children must not speak for us."""
    address, text, meant = (environment.pop(name, "") for name in VARIABLES)
    mine = not meant or meant == str(os.getpid() if pid is None else pid)
    every = int(text) / 1e6 / 3 if mine and text.isdecimal() else 0.0
    return Notifier(address if address.startswith(("/", "@")) else "", every)
