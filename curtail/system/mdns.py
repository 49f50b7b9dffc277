"""Discovery of a controller on the local network by multicast DNS (`_curtail._tcp.local.`).

Anyone on the network can announce anything, so a result is only a candidate
address and never a reason to trust it. Discovery does not cross networks: sites
elsewhere need the address from the user. If announcing fails, the controller
keeps running. Durations are in seconds.
"""

from __future__ import annotations

import contextlib
import ipaddress
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from curtail.errors import NotFound, UsageError

if TYPE_CHECKING:
    from zeroconf import Zeroconf

SERVICE = "_curtail._tcp.local."

INFO_S = 1.0
"""Timeout for resolving the address of one announced name, in seconds."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Found:
    """A controller that announced itself."""

    name: str
    url: str
    run: str  # id of the run, empty if it was not announced


@dataclass(frozen=True, slots=True)
class Announcement:
    """Result of announcing a controller; `reason` says why it failed, None if it succeeded."""

    reason: str | None


@contextlib.contextmanager
def announce(
    name: str, port: int, addresses: Sequence[str], properties: Mapping[str, str] | None = None
) -> Iterator[Announcement]:
    """Announce a controller while the block runs.

    Takes about a second on entry: the name is probed first. With loopback
    addresses only, nothing leaves the machine.

    Args:
        name: display name, cut to 63 bytes; a name already in use gets a number appended.
        addresses: where the controller listens, IPv4 or IPv6.
        properties: short public texts, such as proto and run; never a secret.
    """
    zeroconf: Zeroconf | None = None
    reason: str | None = None
    try:
        zeroconf = _in_thread(lambda: _register(name, port, addresses, properties or {}))
    except Exception as error:  # discovery is a convenience: no failure may stop the controller
        reason = f"the controller cannot be announced on the network: {error or type(error).__name__}"
    try:
        yield Announcement(reason)
    finally:
        if zeroconf is not None:
            with contextlib.suppress(Exception):  # the process is ending, and an announcement expires by itself
                _in_thread(zeroconf.close)


def browse(timeout_s: float = 3.0, loopback_only: bool = False, enough: int | None = None) -> list[Found]:
    """The controllers that answer within `timeout_s`, in name order.

    Args:
        loopback_only: ask this machine only.
        enough: return as soon as this many were found; None: wait for the whole timeout.
    Raises: OSError: this machine has no network interface for multicast.
    """
    return _in_thread(lambda: _browse(timeout_s, loopback_only, enough))


def find_controller(timeout_s: float = 3.0, browsing: Callable[[float], list[Found]] = browse) -> Found:
    """The only controller on the local network.

    Raises: NotFound: none answers. UsageError: more than one answers.
    """
    remedy = "give its address, for example http://127.0.0.1:8765"
    try:
        found = browsing(timeout_s)
    except OSError as error:
        raise NotFound(f"this machine cannot search for a controller: {error}", remedy) from error
    if not found:
        raise NotFound(f"no controller answered on this network within {timeout_s:g} s", remedy)
    if len({entry.url for entry in found}) > 1:
        listed = ", ".join(f"{entry.url} ({entry.name})" for entry in found)
        raise UsageError(f"several controllers answered: {listed}", "give the address of one of them")
    return found[0]


def _in_thread(call: Callable[[], Result]) -> Result:
    # Inside a running event loop zeroconf would deadlock waiting for that loop; a new thread has no loop.
    with ThreadPoolExecutor(1, thread_name_prefix="discovery") as pool:
        return pool.submit(call).result()


def _register(name: str, port: int, addresses: Sequence[str], properties: Mapping[str, str]) -> Zeroconf:
    from zeroconf import InterfaceChoice, ServiceInfo, Zeroconf

    numbers = [ipaddress.ip_address("127.0.0.1" if a == "localhost" else a) for a in addresses]
    label = name.replace(".", "-").encode()[:63].decode(errors="ignore") or "curtail"
    info = ServiceInfo(
        SERVICE,
        f"{label}.{SERVICE}",
        addresses=[number.packed for number in numbers],
        port=port,
        properties={"txtvers": "1", "api": "/v1", **properties},
        server=f"curtail-{port}.local.",
    )
    inside = all(number.is_loopback for number in numbers)
    zeroconf = Zeroconf(interfaces=["127.0.0.1"] if inside else InterfaceChoice.All)
    try:
        zeroconf.register_service(info, allow_name_change=True)
    except BaseException:
        zeroconf.close()
        raise
    return zeroconf


def _browse(timeout_s: float, loopback_only: bool, enough: int | None) -> list[Found]:
    from zeroconf import InterfaceChoice, ServiceBrowser, ServiceListener, Zeroconf

    found: dict[str, Found] = {}
    done = threading.Event()

    class Listener(ServiceListener):
        def add_service(self, zc: Any, type_: str, name: str) -> None:
            info = zc.get_service_info(type_, name, timeout=INFO_S * 1000)
            entry = _found(info) if info is not None else None
            if entry is not None:
                found[name] = entry
            if enough is not None and len(found) >= enough:
                done.set()

        def update_service(self, zc: Any, type_: str, name: str) -> None:
            self.add_service(zc, type_, name)

        def remove_service(self, zc: Any, type_: str, name: str) -> None:
            found.pop(name, None)

    zeroconf = Zeroconf(interfaces=["127.0.0.1"] if loopback_only else InterfaceChoice.All)
    try:
        browser = ServiceBrowser(zeroconf, SERVICE, Listener())
        done.wait(timeout_s)
        browser.cancel()
    finally:
        zeroconf.close()
    return [found[name] for name in sorted(found)]


def _found(info: Any) -> Found | None:
    """The announced controller; a loopback address is preferred, because plain HTTP is allowed there."""
    addresses = info.parsed_addresses()
    if not addresses or not info.port:
        return None
    addresses.sort(key=lambda address: (not ipaddress.ip_address(address).is_loopback, ":" in address))
    host = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    proto = _text(info, "proto") or "http"
    if proto not in ("http", "https"):
        return None
    label = info.name.removesuffix(f".{SERVICE}")
    return Found(label, f"{proto}://{host}:{info.port}", _text(info, "run"))


def _text(info: Any, key: str) -> str:
    value = info.properties.get(key.encode())
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
