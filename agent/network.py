"""Chooses the address and the network interface through which a site's machines communicate.

Decides the address that an agent reports by default, and the interface that the
job's collective operations use. It opens no connection and sends nothing.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

from curtail.security.tls import is_loopback

SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface (netdevice(7))."""


def socket_interface(address: str | None, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that make gloo and NCCL use the right network interface.

    Args: address: where the site's other machines reach this one; None: the job runs on this machine alone.
    Returns: for one machine the loopback, even if `inherited` names another interface. For several machines the
        interface with that address, unless the user set one; nothing if it is unknown: then gloo and NCCL choose.
    """
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    loopback = "lo" if sys.platform == "linux" else "lo0"
    if address is None or is_loopback(address):
        return dict.fromkeys(names, loopback)
    found = interface_of(address)
    return {name: found for name in names if found is not None and not inherited.get(name)}


def interface_of(address: str) -> str | None:
    """The name of this machine's interface with that IPv4 address or host name; None if it is unknown."""
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        wanted = socket.gethostbyname(address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # one without an IPv4 address
                    reply = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                    if socket.inet_ntoa(reply[20:24]) == wanted:
                        return name
    except OSError:
        return None
    return None


def local_address(url: str) -> str:
    """This machine's address on its route to the controller at `url`; nothing is sent."""
    host = urlsplit(url).hostname or "127.0.0.1"
    try:
        family, kind, proto, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as asking:
            asking.connect(target)
            return str(asking.getsockname()[0])
    except OSError:
        return "127.0.0.1"
