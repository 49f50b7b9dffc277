"""Notifications to systemd: ready, stopping and watchdog pings (sd_notify(3)).

A watchdog ping states that the main loop makes progress, so only that loop may
send it. Without systemd, or without a watchdog in the unit, nothing is sent.
Times are seconds of a monotonic clock.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def send_datagram(address: str, message: bytes) -> None:
    """Send one message to the socket `address`; a leading @ means the abstract namespace. Raises: OSError."""
    place = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)  # a full queue must not block the main loop
        sender.sendto(message, place)


class Notifier:
    """Sends this process's state to systemd.

    Args: address: of systemd's socket, "" if there is none. every: seconds between two pings; 0: no watchdog.
    """

    def __init__(
        self, address: str = "", every: float = 0.0, send: Callable[[str, bytes], None] = send_datagram
    ) -> None:
        self._address, self.every, self._send = address, every, send
        self._last: float | None = None

    def ready(self) -> None:
        """Report that startup is complete."""
        self._tell(b"READY=1")

    def stopping(self) -> None:
        """Report that the process is shutting down."""
        self._tell(b"STOPPING=1")

    def alive(self, now: float) -> None:
        """Call once per iteration of the main loop: sends a watchdog ping if one is due."""
        if self.every > 0 and (self._last is None or now - self._last >= self.every):
            self._last = now
            self._tell(b"WATCHDOG=1")

    def _tell(self, message: bytes) -> None:
        if self._address:
            # If pings get lost, systemd's watchdog kills the process and its log says why.
            with contextlib.suppress(OSError):
                self._send(self._address, message)


def take_notifier(environment: MutableMapping[str, str], pid: int | None = None) -> Notifier:
    """The notifier described by systemd's variables, which are removed so that child processes do not notify for us."""
    address, text, meant = (environment.pop(name, "") for name in VARIABLES)
    mine = not meant or meant == str(os.getpid() if pid is None else pid)
    every = int(text) / 1e6 / 3 if mine and text.isdecimal() else 0.0
    return Notifier(address if address.startswith(("/", "@")) else "", every)
