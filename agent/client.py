"""Control messages to the controller: one typed call per path of `curtail.wire`.

Decides how answers and failures become values and `CurtailError`s; it does not
retry and moves no weights (`agent.transfer` does). The `httpx.Client` is handed
in, with the controller's address as its base. Every call has a timeout, in
seconds. Plain HTTP is for loopback only: everything else would carry the
credential in clear.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx

from agent.link import Link
from curtail import __version__, wire
from curtail.errors import (
    AuthError,
    CurtailError,
    DiskError,
    NotFound,
    Refused,
    Unreachable,
    UsageError,
    WireError,
)

CONNECT_S = 3.0
"""Longest wait for a connection; a controller that needs more cannot be reached."""

REPLY_S = 10.0
"""Longest wait for the answer to a control message."""

COMMIT_S = 120.0
"""Longest wait where the controller hashes or reads whole weights before it answers."""

Reply = TypeVar("Reply")

_BY_STATUS: dict[int, type[CurtailError]] = {
    400: WireError,
    401: AuthError,
    403: AuthError,
    404: NotFound,
    409: Refused,
    413: WireError,
    416: WireError,
    422: WireError,
    507: DiskError,
}


def is_loopback(host: str) -> bool:
    """True if `host` can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_url(url: str) -> httpx.URL:
    """`url` as the base address of a controller.

    Raises: UsageError: no URL, or plain HTTP to another machine.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is no URL: {error}", "write for example http://127.0.0.1:8765") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is no URL of a controller", "write for example http://127.0.0.1:8765")
    if parsed.scheme == "http" and not is_loopback(parsed.host):
        raise UsageError(
            f"plain HTTP to {parsed.host} would send the credential in clear",
            "tunnel the controller's port to this machine (ssh -L) and use http://127.0.0.1, or use https",
        )
    return parsed.copy_with(path="/", query=None, fragment=None)


def open_http(url: str) -> httpx.Client:
    """The connection pool to the controller at `url`.

    Raises: UsageError: see `check_url`.
    """
    base = check_url(url)
    return httpx.Client(
        base_url=base,
        timeout=httpx.Timeout(REPLY_S, connect=CONNECT_S),
        # A proxy from the environment must not see what stays on this machine.
        trust_env=not is_loopback(base.host),
        headers={"User-Agent": f"curtail/{__version__}"},
        verify=True,  # a pinned certificate authority goes here
    )


class Control:
    """The calls of one agent or job.

    Args:
        http: has the controller's address as `base_url`.
        credential: sent as bearer with every call; None before the agent has joined.
        link: the limit that `agent.transfer` keeps to; None: no limit.
    """

    def __init__(self, http: httpx.Client, credential: str | None = None, link: Link | None = None) -> None:
        self.http = http
        self.credential = credential
        self.link = link

    def join(self, request: wire.JoinRequest) -> wire.JoinReply:
        """Be admitted with a token; the reply's credential is used from now on.

        Raises: AuthError, Refused, WireError, Unreachable.
        """
        reply = self._post(wire.JOIN, request, wire.JoinReply)
        self.credential = reply.credential
        return reply

    def heartbeat(self, beat: wire.Heartbeat, timeout_s: float = 5.0) -> wire.HeartbeatReply:
        """Say what this agent does; hear whether it may train.

        Raises: AuthError, Refused (another agent speaks for the site), Unreachable.
        """
        return self._post(wire.HEARTBEAT, beat, wire.HeartbeatReply, timeout_s)

    def leave(self, request: wire.LeaveRequest, timeout_s: float = 5.0) -> wire.Ack:
        """Stop for good."""
        return self._post(wire.LEAVE, request, wire.Ack, timeout_s)

    def run_info(self) -> wire.RunInfo:
        """What is fixed for the whole run."""
        return self._get(wire.RUN, wire.RunInfo)

    def checkout(self, request: wire.CheckoutRequest) -> wire.CheckoutReply:
        """Ask what to do next.

        Raises: Refused: the fence is old.
        """
        return self._post(wire.CHECKOUT, request, wire.CheckoutReply)

    def progress(self, progress: wire.Progress, timeout_s: float = 5.0) -> wire.ProgressReply:
        """Tell how far the round is; hear whether it should end."""
        return self._post(wire.PROGRESS, progress, wire.ProgressReply, timeout_s)

    def commit(self, request: wire.CommitRequest) -> wire.Receipt:
        """Hand in a contribution whose blob is already there; a repeat gets the first receipt.

        Raises: Refused: another base, fence or round.
        """
        return self._post(wire.COMMIT, request, wire.Receipt, COMMIT_S)

    def offer_blob(self, offer: wire.BlobOffer) -> wire.BlobStatus:
        """Reserve room for a file; hear which parts are missing.

        Raises: DiskError: the controller has no room.
        """
        return self._post(wire.BLOBS, offer, wire.BlobStatus, COMMIT_S)

    def commit_blob(self, sha256: str) -> None:
        """All parts are there: check the whole and keep it.

        Raises: Refused: a part is missing or the content has another hash.
        """
        self.send("POST", wire.BLOB_COMMIT.format(sha256=sha256), timeout_s=COMMIT_S)

    def status(self) -> wire.Status:
        """The snapshot every view is made of."""
        return self._get(wire.STATUS, wire.Status)

    def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = REPLY_S,
    ) -> bytes:
        """One request; the body of a successful answer.

        Raises: Unreachable, or the `CurtailError` that the answer stands for.
        """
        with self.stream(method, path, content=content, headers=headers, timeout_s=timeout_s) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > wire.MAX_BODY:
                    raise WireError(f"the answer to {method} {path} is longer than {wire.MAX_BODY} bytes")
            return bytes(body)

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        content: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = REPLY_S,
    ) -> Iterator[httpx.Response]:
        """A request whose successful answer is read inside the `with` block.

        Raises: as `send`; also inside the block, when the connection is cut.
        """
        all_headers = dict(headers or {})
        if self.credential:
            all_headers["Authorization"] = f"Bearer {self.credential}"
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        try:
            with self.http.stream(method, path, content=content, headers=all_headers, timeout=timeout) as response:
                if not response.is_success:
                    raise _refusal(response)
                yield response
        except httpx.TimeoutException as error:
            raise Unreachable(f"the controller at {self.address} did not answer in {timeout_s:g} s") from error
        except httpx.ConnectError as error:
            raise Unreachable(
                f"nobody answers at {self.address}", "check the address and that `curtail controller` runs there"
            ) from error
        except httpx.HTTPError as error:
            raise Unreachable(f"the connection to {self.address} broke: {error or type(error).__name__}") from error

    @property
    def address(self) -> str:
        """The controller's address, for people."""
        return str(self.http.base_url).rstrip("/")

    def _post(self, path: str, message: Any, kind: type[Reply], timeout_s: float = REPLY_S) -> Reply:
        headers = {"Content-Type": "application/json"}
        body = self.send("POST", path, content=wire.encode(message), headers=headers, timeout_s=timeout_s)
        return wire.decode(kind, body)

    def _get(self, path: str, kind: type[Reply], timeout_s: float = REPLY_S) -> Reply:
        return wire.decode(kind, self.send("GET", path, timeout_s=timeout_s))


def _refusal(response: httpx.Response) -> CurtailError:
    """The error that a failed `response` stands for."""
    status = response.status_code
    # A controller that fails inside, or a proxy before it, is an outage: it may pass.
    kind = _BY_STATUS.get(status, Unreachable if status >= 500 else CurtailError)
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > wire.MAX_BODY:
            break
    try:
        problem = wire.decode(wire.Problem, body)
    except WireError:
        return kind(f"the controller answered {status} {_detail(body)}".rstrip())
    return kind(problem.message, problem.remedy or None)


def _detail(body: bytes) -> str:
    """What a body that is no `Problem` says, cut short."""
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    return str(value.get("detail", ""))[:200] if isinstance(value, dict) else ""
