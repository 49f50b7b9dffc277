"""The controller's listener: addresses, TLS or plain HTTP, and certificates that are renewed while it runs.

No secret crosses a network unencrypted unless the operator asks for it: plain HTTP is for
loopback, everything else uses TLS. The status needs no token only where all who can reach it
are users of this machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from controller.auth.authority import TlsIdentity
from curtail.errors import CurtailError, UsageError
from curtail.security.tls import is_loopback

log = logging.getLogger("curtail.controller")

LOOK_S = 6 * 3600.0
"""How often the certificate's expiry is checked."""

BACKLOG = 1024
"""Connections that may wait to be accepted: all agents at once, after the controller was away. The system may allow
fewer (net.core.somaxconn); TCP itself tries the others again after a second."""

ADDRESS_SHARE = 0.5
"""The part of all connections that one address may hold: room for a thousand agents and their jobs, and for others."""

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Hosts that mean all addresses -> the address at which this machine reaches itself then."""

BANNER = """
*****************************************************************************
  --insecure: the controller speaks plain HTTP at {url}.
  Everyone on the way can read credentials and weights, take over sites and
  change what is trained. Use it in a network that is trusted as a whole, only.
*****************************************************************************"""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """How the controller is reached."""

    host: str
    tls: bool
    open_status: bool
    insecure: bool  # plain HTTP beyond loopback

    def url(self, port: int) -> str:
        """Its URL for this machine."""
        return self._url(WILDCARDS.get(self.host, self.host), port)

    def public(self, port: int, names: Sequence[str]) -> str:
        """Its URL for others. Where it listens on all addresses: with the first of `names` that is not loopback."""
        if self.host not in WILDCARDS:
            return self._url(names[0] if names and not is_loopback(self.host) else self.host, port)
        return self._url(next((name for name in names if not is_loopback(name)), WILDCARDS[self.host]), port)

    def addresses(self, names: Sequence[str]) -> list[str]:
        """The IP addresses that are announced."""
        here = WILDCARDS.get(self.host, self.host)
        outside = [name for name in names if _is_address(name) and not is_loopback(name)]
        return [here] if is_loopback(self.host) or not outside else outside

    def _url(self, host: str, port: int) -> str:
        return f"{'https' if self.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def choose(host: str, tls: bool | None, insecure: bool, open_status: bool) -> ListenAddress:
    """What the command line asks for.

    Args: tls: None: as the host needs it.
    Raises: UsageError: plain HTTP beyond loopback, and nobody insists.
    """
    inside = is_loopback(host)
    if tls and insecure:
        raise UsageError("--tls and --insecure do not go together", "leave --insecure out")
    wanted = tls if tls is not None else not inside and not insecure
    if not wanted and not inside and not insecure:
        raise UsageError(
            f"--no-tls at {host} would send credentials unencrypted",
            "leave --no-tls out; or, in a network that is trusted as a whole, add --insecure",
        )
    return ListenAddress(host, wanted, open_status or inside, not wanted and not inside)


def listen(host: str, port: int) -> socket.socket:
    """The socket. Raises: CurtailError: the address is taken, or not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CurtailError(
            f"cannot listen on {host}:{port}: {reason}", "stop what listens there, or choose another --port"
        ) from error
    return listener


def announcing(
    face: ListenAddress, port: int, names: Sequence[str], run: str, name: str
) -> contextlib.AbstractContextManager[object]:
    """While the block runs, the local network can find the controller of the run `run`, called `name`."""
    from curtail.system.mdns import announce

    facts = {"run": name, "proto": "https" if face.tls else "http"}
    return announce(f"curtail {name} {run}", port, face.addresses(names), facts)


@contextlib.contextmanager
def renewing(
    context: ssl.SSLContext, identity: TlsIdentity, ensure: Callable[[], TlsIdentity], every_s: float = LOOK_S
) -> Iterator[None]:
    """While the block runs, new connections get a renewed certificate as soon as there is one.

    Args: ensure: returns the identity, renewed if it is time.
    """
    stop = threading.Event()

    def look() -> None:
        ends = identity.ends
        while not stop.wait(every_s):
            try:
                ends = renew(context, ends, ensure)
            except (CurtailError, OSError) as error:
                log.error("the certificate cannot be renewed: %s", error)

    thread = threading.Thread(target=look, name="certificate", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def renew(context: ssl.SSLContext, ends: float, ensure: Callable[[], TlsIdentity]) -> float:
    """Check the certificate once; returns when the one in use expires. Raises: CurtailError, OSError."""
    now = ensure()
    if now.ends != ends:
        context.load_cert_chain(now.files.certificate, now.files.key)
        log.info("the certificate was renewed")
    return now.ends


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
