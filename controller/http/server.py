"""Runs the application under uvicorn: TLS, limits of connections, signals that end it, systemd's watchdog.

uvicorn is pinned to a minor version, because the limits of connections use its internals:
docs/decisions/024.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from controller.auth.authority import TlsIdentity
from controller.energy.simulation import EnergySimulation
from controller.http.listener import ADDRESS_SHARE, ListenAddress, renewing
from controller.scheduling.permits import TICK_LIMIT_S
from controller.service.service import Service
from curtail.system.clock import Clock
from curtail.system.systemd import Notifier


def unhealthy(service: Service, energy: EnergySimulation) -> str | None:
    """Why the controller cannot do its work, or None."""
    if energy.failure is not None:
        return f"the energy simulation failed: {energy.failure}"
    if service.seconds_since_tick() > TICK_LIMIT_S:
        return "the energy simulation makes no steps"
    return None


@dataclass(frozen=True, slots=True)
class Pulse:
    """Tells systemd that the controller works: the HTTP loop comes around, and the store and the energy do steps."""

    notifier: Notifier
    clock: Clock
    unhealthy: Callable[[], str | None]

    async def beat(self) -> None:
        """Called by the HTTP loop."""
        if self.unhealthy() is None:
            self.notifier.alive(self.clock.monotonic())


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom the application is served."""

    listener: socket.socket
    face: ListenAddress
    identity: TlsIdentity
    renewed: Callable[[], TlsIdentity]  # the identity, with a new certificate if it is time
    address_share: float = ADDRESS_SHARE  # of all connections, what one address beyond loopback may hold


def serve(app: Any, endpoint: Endpoint, pulse: Pulse) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    import uvicorn

    from controller.http import connection_limit, connection_timeouts

    connection_timeouts.raise_file_handles()
    tls, identity = endpoint.face.tls, endpoint.identity
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,  # `controller.http.request_limits` says it
        **connection_limit.options(),
        callback_notify=pulse.beat if pulse.notifier.every else None,
        timeout_notify=max(1, int(pulse.notifier.every)),
        ssl_certfile=identity.files.certificate if tls else None,
        ssl_keyfile=identity.files.key if tls else None,
    )
    config.load()
    server = uvicorn.Server(config)
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # uvicorn restores this handler and raises the signal again after it has ended.
        received.append(number)
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    caps = connection_limit.caps(connection_timeouts.most_connections(), endpoint.address_share)
    with contextlib.ExitStack() as stack:
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
            stack.enter_context(renewing(config.ssl, identity, endpoint.renewed))
        server.run(sockets=[connection_limit.CountingListener(endpoint.listener, caps)])
    return 130 if signal.SIGINT in received else 0
