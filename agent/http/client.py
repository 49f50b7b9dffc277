"""Client for the controller's API: one typed method per path of `curtail.wire`.

It turns responses into values and failures into `CurtailError`s. It does not
retry, except once a signed request whose timestamp was wrong. `agent.http.transfer`
moves the weights. The `httpx.Client` is injected, with the controller's address as
its base URL; `curtail.security.tls` authenticates the controller. Every call has a
timeout, in seconds. The agent's key signs every POST except the offer of an upload.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

from agent.http.backoff import Throttle
from agent.http.bandwidth import Link
from curtail import wire
from curtail.errors import AuthError, CurtailError, DiskError, NotFound, Refused, Throttled, Unreachable, WireError
from curtail.security import signing
from curtail.security.tls import (
    CONNECT_S,
    MISTRUST_REMEDY,
    REPLY_S,
    check_url,
    is_loopback,
    mistrust,
    open_http,
    other_scheme,
)
from curtail.system.clock import Clock, SystemClock
from curtail.wire import limits

MOST_BYTES = 2_200_000_000
"""Assumed file size if the caller gives none: the weights of d20."""

READ_BYTES_S = 20e6
"""Slowest rate, in bytes per second, at which the controller hashes or reads a file before it answers."""

SAME_S = 60.0
"""Two readings of the controller's clock offset count as equal if they differ by less than this, in seconds."""

Reply = TypeVar("Reply")

_BY_STATUS: dict[int, type[CurtailError]] = {
    400: WireError,
    401: AuthError,
    403: AuthError,
    404: NotFound,
    408: Unreachable,
    409: Refused,
    413: WireError,
    414: WireError,
    415: WireError,
    416: WireError,
    422: WireError,
    429: Throttled,
    431: WireError,
    507: DiskError,
}


class Control:
    """The calls of one agent or job.

    Args:
        http: has the controller's address as `base_url`.
        credential: sent as bearer token with every call; None before the agent has joined.
        link: the bandwidth limit for `agent.http.transfer`; None: no limit.
        signer: signs the requests that need a signature; None: they are sent unsigned, and refused.
        reread: returns the current credential, for a job: its agent gets a new one every few hours.
        clock: for the backoff after 429; None: the system's.
    """

    def __init__(
        self,
        http: httpx.Client,
        credential: str | None = None,
        link: Link | None = None,
        signer: signing.Signer | None = None,
        reread: Callable[[], str | None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.http = http
        self.credential = credential
        self.link = link
        self.signer = signer
        self._reread = reread
        self._clock, self._throttle = clock or SystemClock(), Throttle()

    def join(self, request: wire.JoinRequest) -> wire.JoinReply:
        """Join with a token; the reply's credential is used from then on.

        Raises: AuthError, Refused, WireError, Unreachable.
        """
        request = dataclasses.replace(request, machine=limits.clean(request.machine, 255))
        reply = self._post(wire.JOIN, request, wire.JoinReply, signed=True)
        self.credential = reply.credential
        return reply

    def renew(self, request: wire.RenewRequest) -> wire.JoinReply:
        """Get a new credential by the agent's key alone; it is used from then on.

        Raises: AuthError: no machine with this key has joined. Unreachable.
        """
        before, self.credential = self.credential, None
        try:
            reply = self._post(wire.CREDENTIAL, request, wire.JoinReply, signed=True)
        except CurtailError:
            self.credential = before
            raise
        self.credential = reply.credential
        return reply

    def heartbeat(self, beat: wire.Heartbeat, timeout_s: float = 5.0) -> wire.HeartbeatReply:
        """Report the agent's state. Returns: whether it may train.

        Raises: AuthError. Refused: another agent has replaced this one. Unreachable.
        """
        beat = dataclasses.replace(beat, note=limits.clean(beat.note))
        return self._post(wire.HEARTBEAT, beat, wire.HeartbeatReply, timeout_s, signed=True)

    def leave(self, request: wire.LeaveRequest, timeout_s: float = 5.0) -> wire.Ack:
        """Leave the run."""
        request = dataclasses.replace(request, reason=limits.clean(request.reason))
        return self._post(wire.LEAVE, request, wire.Ack, timeout_s, signed=True)

    def run_info(self) -> wire.RunInfo:
        """The settings that are fixed for the whole run."""
        return self._get(wire.RUN, wire.RunInfo)

    def checkout(self, request: wire.CheckoutRequest) -> wire.CheckoutReply:
        """Request work: a round with a lease, or a wait.

        Raises: Refused: the fencing token is old.
        """
        return self._post(wire.CHECKOUT, request, wire.CheckoutReply, signed=True)

    def progress(self, progress: wire.Progress, timeout_s: float = 5.0) -> wire.ProgressReply:
        """Report the progress of a round. Returns: whether to end it now."""
        return self._post(wire.PROGRESS, progress, wire.ProgressReply, timeout_s, signed=True)

    def commit(self, request: wire.CommitRequest, size: int = MOST_BYTES) -> wire.Receipt:
        """Commit a contribution whose blob of `size` bytes is already uploaded. Idempotent: a retry gets the receipt.

        Raises: Refused: the base, the fencing token or the round is another.
        """
        return self._post(wire.COMMIT, request, wire.Receipt, reading_s(size), signed=True)

    def offer_blob(self, offer: wire.BlobOffer) -> wire.BlobStatus:
        """Announce an upload and reserve space for it. Returns: which parts are missing.

        Raises: DiskError: the controller has no space.
        """
        return self._post(wire.BLOBS, offer, wire.BlobStatus, reading_s(offer.size))

    def commit_blob(self, sha256: str, size: int) -> None:
        """Finish an upload of `size` bytes: the controller checks the hash and keeps the file.

        Raises: Refused: a part is missing, or the hash is wrong.
        """
        path = wire.BLOB_COMMIT.format(sha256=sha256)
        self._send_signed(path, b"", {}, reading_s(size))

    def status(self) -> wire.Status:
        """The run's status snapshot."""
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
        """Send one request. Returns: the body of a successful response.

        Raises: Unreachable, or the `CurtailError` of the response's status.
        """
        with self.stream(method, path, content=content, headers=headers, timeout_s=timeout_s) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > wire.MAX_BODY:
                    raise WireError(f"the response to {method} {path} is longer than {wire.MAX_BODY} bytes")
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
        """Send a request whose successful response is read inside the `with` block.

        Raises: as `send`; also inside the block, if the connection is lost. Throttled: the controller answered 429,
            now or shortly before; in the second case nothing was sent.
        """
        heartbeat = path == wire.HEARTBEAT
        left = self._throttle.left(heartbeat, self._clock.monotonic())
        if left > 0:
            raise Throttled(f"rate limit: the controller at {self.address} asked to wait another {left:.1f} s")
        all_headers = dict(headers or {})
        if self._reread is not None:
            self.credential = self._reread() or self.credential
        if self.credential:
            all_headers["Authorization"] = f"Bearer {self.credential}"
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        try:
            with self.http.stream(method, path, content=content, headers=all_headers, timeout=timeout) as response:
                self._note_time(response)
                if response.status_code == 429:
                    header, now = response.headers.get("retry-after"), self._clock.monotonic()
                    self._throttle.told(heartbeat, header, now, random.random())
                if not response.is_success:
                    raise _refusal(response)
                yield response
        except httpx.TimeoutException as error:
            raise Unreachable(f"the controller at {self.address} did not answer in {timeout_s:g} s") from error
        except httpx.ConnectError as error:
            if why := mistrust(error, self.address):
                raise Unreachable(why, MISTRUST_REMEDY) from error
            if remedy := other_scheme(error, self.address):
                raise Unreachable(f"cannot open a TLS connection to {self.address}", remedy) from error
            raise Unreachable(
                f"nobody answers at {self.address}", "check the address and that `curtail controller` runs there"
            ) from error
        except httpx.HTTPError as error:
            why, remedy = str(error) or type(error).__name__, other_scheme(error, self.address)
            raise Unreachable(f"the connection to {self.address} was lost: {why}", remedy) from error

    @property
    def address(self) -> str:
        """The controller's address, for messages."""
        return str(self.http.base_url).rstrip("/")

    def _post(
        self, path: str, message: Any, kind: type[Reply], timeout_s: float = REPLY_S, signed: bool = False
    ) -> Reply:
        content, headers = wire.encode(message), {"Content-Type": "application/json"}
        if signed:
            return wire.decode(kind, self._send_signed(path, content, headers, timeout_s))
        return wire.decode(kind, self.send("POST", path, content=content, headers=headers, timeout_s=timeout_s))

    def _send_signed(self, path: str, content: bytes, headers: dict[str, str], timeout_s: float) -> bytes:
        """Send a signed request. If it is refused and the response corrects the clock offset, retry once."""
        believed = 0.0 if self.signer is None else self.signer.ahead_s
        for again in (False, True):
            signature = self._signature("POST", path, content)
            try:
                return self.send(
                    "POST", path, content=content or None, headers=headers | signature, timeout_s=timeout_s
                )
            except AuthError:
                if again or self.signer is None or abs(self.signer.ahead_s - believed) < SAME_S:
                    raise
        raise AssertionError("the second response is final")

    def _signature(self, method: str, path: str, body: bytes) -> dict[str, str]:
        return {} if self.signer is None else {signing.HEADER: self.signer.header(method, path, body)}

    def _note_time(self, response: httpx.Response) -> None:
        """Note the offset of the controller's clock. Requests are signed with its time, so ours may be wrong."""
        said = response.headers.get("date")
        if self.signer is None or not said:
            return
        with contextlib.suppress(ValueError):
            self.signer.ahead_s = email.utils.parsedate_to_datetime(said).timestamp() - self.signer.wall()

    def _get(self, path: str, kind: type[Reply], timeout_s: float = REPLY_S) -> Reply:
        return wire.decode(kind, self.send("GET", path, timeout_s=timeout_s))


def reading_s(size: int) -> float:
    """Timeout for a request for which the controller first reads `size` bytes.

    It is no longer than needed: only this timeout detects a connection that was lost silently, and the round does
    not wait.
    """
    return REPLY_S + size / READ_BYTES_S


def _refusal(response: httpx.Response) -> CurtailError:
    """The error for an unsuccessful `response`."""
    status = response.status_code
    # An internal error of the controller, or of a proxy in front of it, is an outage that may pass.
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
    """The detail in a body that is not a `Problem`, truncated."""
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    return str(value.get("detail", ""))[:200] if isinstance(value, dict) else ""


__all__ = ["Control", "check_url", "is_loopback", "open_http"]
