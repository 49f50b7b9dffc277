"""HTTP GET of JSON from a signal source, with timeouts and a size limit.

Decides the timeouts, the limits, and which failure becomes which `SignalError`. A
source that sends a byte now and then is cut off by the total timeout. Redirects
are not followed, because they would send the credential to another host. Error
messages contain the status, never a header or a body.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

import httpx

from controller.signals.answer import SignalError, Unbelievable
from curtail import __version__
from curtail.errors import ConfigError
from curtail.system.clock import Clock

CONNECT_S, SILENCE_S, WHOLE_S = 5.0, 10.0, 30.0
"""Timeouts: for the connection, for the next bytes, for the whole response."""

LARGEST = 32 * 1024 * 1024
"""Largest response, in bytes."""


class Unauthorised(SignalError):
    """Status 401: the credential or the token was refused."""


def check_address(address: str, name: str) -> str:
    """`address` as the base of a source's paths.

    Raises: ConfigError: no URL, or plain HTTP to another machine.
    """
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{name} = {address!r} is not a URL", "write for example https://api.watttime.org")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise ConfigError(f"{name} = {address!r} would send the credential unencrypted", "use https")
    return address.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def open_web(address: str, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """An HTTP client for the source at `address`."""
    return httpx.Client(
        base_url=address,
        timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        headers={"User-Agent": f"curtail/{__version__}", "Accept": "application/json"},
        follow_redirects=False,
        trust_env=not _is_loopback(httpx.URL(address).host),
        transport=transport,
    )


def ask(
    web: httpx.Client, clock: Clock, path: str, params: Mapping[str, str | int], headers: Mapping[str, str],
    auth: tuple[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The JSON object at `path`.

    Raises: Unauthorised: status 401. SignalError: any other failure.
    """
    began = clock.monotonic()
    body = bytearray()
    try:
        with web.stream("GET", path, params=dict(params), headers=dict(headers), auth=auth) as reply:
            _check_status(reply, path)
            for part in reply.iter_bytes():
                body += part
                if len(body) > LARGEST:
                    raise Unbelievable(f"the response of {path} is larger than {LARGEST >> 20} MiB")
                if clock.monotonic() - began > WHOLE_S:
                    raise SignalError(f"the response of {path} was not complete after {WHOLE_S:.0f} s")
    except httpx.TimeoutException:
        raise SignalError(f"no response from {path} within {clock.monotonic() - began:.0f} s") from None
    except httpx.HTTPError as error:
        raise SignalError(f"cannot be reached ({type(error).__name__}: {error})") from None
    if not body:
        raise Unbelievable(f"the response of {path} was empty")
    try:
        value = json.loads(body)
    except ValueError:
        raise Unbelievable(f"the response of {path} is not JSON") from None
    if not isinstance(value, dict):
        raise Unbelievable(f"the response of {path} does not have the documented form")
    return value


def _check_status(reply: httpx.Response, path: str) -> None:
    status = reply.status_code
    if status == 200:
        return
    reason = f"status {status} ({reply.reason_phrase or 'no reason'}) for {path}"
    if status == 401:
        raise Unauthorised(f"{reason}: the credential was refused")
    if status == 403:
        raise SignalError(f"{reason}: the account has no access to this region or these data")
    wait = reply.headers.get("Retry-After", "")
    raise SignalError(reason, float(wait) if wait.isdecimal() and len(wait) < 6 else None)
