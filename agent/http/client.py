"""Client of the controller's HTTP API: one typed call for each path of `curtail.wire`.

Decides how answers and failures become values and `CurtailError`s. It does not retry,
except once a request that was signed with a wrong time of day, and it moves no weights
(`agent.http.transfer` does). `curtail.security.tls` decides which server is trusted.
Every call has a timeout, in seconds. Join, heartbeat, checkout, progress, commit and
leave are signed with the agent's key.
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
from agent.http.bandwidth import BandwidthLimit
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
"""Assumed size of a file if the caller names none, in bytes: the weights of d20."""

READ_BYTES_S = 20e6
"""Slowest rate, in bytes per second, at which a controller reads or hashes a file before it answers."""

SAME_S = 60.0
"""Seconds by which two readings of the controller's time of day may differ although no clock was set."""

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
        link: the bandwidth limit that `agent.http.transfer` obeys; None: no limit.
        signer: signs requests; None: nothing can be joined or committed.
        reread: returns the current credential, for a job: its agent gets a new one every few hours.
        clock: for rate limits; None: the system's.
    """

    def __init__(
        self,
        http: httpx.Client,
        credential: str | None = None,
        link: BandwidthLimit | None = None,
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
        """Join with a token; the reply's credential is used from now on.

        Raises: AuthError, Refused, WireError, Unreachable.
        """
        request = dataclasses.replace(request, machine=limits.clean(request.machine, 255))
        reply = self._post(wire.JOIN, request, wire.JoinReply, signed=True)
        self.credential = reply.credential
        return reply

    def renew(self, request: wire.RenewRequest) -> wire.JoinReply:
        """Get a new credential with the agent's key alone; it is used from now on.

        Raises: AuthError: no machine with this key joined. Unreachable.
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
        """Report what this agent does; the reply says whether it may train.

        Raises: AuthError, Refused (another agent speaks for the site), Unreachable.
        """
        beat = dataclasses.replace(beat, note=limits.clean(beat.note))
        return self._post(wire.HEARTBEAT, beat, wire.HeartbeatReply, timeout_s, signed=True)

    def leave(self, request: wire.LeaveRequest, timeout_s: float = 5.0) -> wire.Ack:
        """Leave the run for good."""
        request = dataclasses.replace(request, reason=limits.clean(request.reason))
        return self._post(wire.LEAVE, request, wire.Ack, timeout_s, signed=True)

    def run_info(self) -> wire.RunInfo:
        """What is fixed for the whole run."""
        return self._get(wire.RUN, wire.RunInfo)

    def checkout(self, request: wire.CheckoutRequest) -> wire.CheckoutReply:
        """Ask what to do next.

        Raises: Refused: the fence is old.
        """
        return self._post(wire.CHECKOUT, request, wire.CheckoutReply, signed=True)

    def progress(self, progress: wire.Progress, timeout_s: float = 5.0) -> wire.ProgressReply:
        """Report the progress of a round; the reply says whether it should end."""
        return self._post(wire.PROGRESS, progress, wire.ProgressReply, timeout_s, signed=True)

    def commit(self, request: wire.CommitRequest, size: int = MOST_BYTES) -> wire.Receipt:
        """Commit a contribution whose file, of `size` bytes, is uploaded; a repeat gets the first receipt.

        Raises: Refused: another base, fence or round.
        """
        return self._post(wire.COMMIT, request, wire.Receipt, reading_s(size), signed=True)

    def offer_blob(self, offer: wire.BlobOffer) -> wire.BlobStatus:
        """Reserve space for a file; the reply says which parts are missing.

        Raises: DiskError: the controller has no space.
        """
        return self._post(wire.BLOBS, offer, wire.BlobStatus, reading_s(offer.size))

    def commit_blob(self, sha256: str, size: int) -> None:
        """All parts are uploaded, `size` bytes: have the controller check the whole file and keep it.

        Raises: Refused: a part is missing or the content has another hash.
        """
        path = wire.BLOB_COMMIT.format(sha256=sha256)
        self._send_signed(path, b"", {}, reading_s(size))

    def status(self) -> wire.Status:
        """The state of the run, as all views show it."""
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
        """Send one request; returns the body of a successful answer.

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

        Raises: as `send`; inside the block, too, when the connection is cut. Throttled: the controller limits the
            rate, by this answer or by an earlier one; in the second case nothing was sent.
        """
        heartbeat = path == wire.HEARTBEAT
        left = self._throttle.left(heartbeat, self._clock.monotonic())
        if left > 0:
            raise Throttled(
                f"the controller at {self.address} limits requests; the next one may be sent in {left:.1f} s"
            )
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
                raise Unreachable(f"no TLS connection to {self.address} can be made", remedy) from error
            raise Unreachable(
                f"nobody answers at {self.address}", "check the address and that `curtail controller` runs there"
            ) from error
        except httpx.HTTPError as error:
            why, remedy = str(error) or type(error).__name__, other_scheme(error, self.address)
            raise Unreachable(f"the connection to {self.address} broke: {why}", remedy) from error

    @property
    def address(self) -> str:
        """The controller's address, for people."""
        return str(self.http.base_url).rstrip("/")

    def _post(
        self, path: str, message: Any, kind: type[Reply], timeout_s: float = REPLY_S, signed: bool = False
    ) -> Reply:
        content, headers = wire.encode(message), {"Content-Type": "application/json"}
        if signed:
            return wire.decode(kind, self._send_signed(path, content, headers, timeout_s))
        return wire.decode(kind, self.send("POST", path, content=content, headers=headers, timeout_s=timeout_s))

    def _send_signed(self, path: str, content: bytes, headers: dict[str, str], timeout_s: float) -> bytes:
        """Send a signed request; once more if the refusal shows that it was signed with a wrong time of day."""
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
        raise AssertionError("the second answer is final")

    def _signature(self, method: str, path: str, body: bytes) -> dict[str, str]:
        return {} if self.signer is None else {signing.HEADER: self.signer.header(method, path, body)}

    def _note_time(self, response: httpx.Response) -> None:
        """Learn the controller's time of day: requests are signed with it, so this machine's clock may be wrong."""
        said = response.headers.get("date")
        if self.signer is None or not said:
            return
        with contextlib.suppress(ValueError):
            self.signer.ahead_s = email.utils.parsedate_to_datetime(said).timestamp() - self.signer.wall()

    def _get(self, path: str, kind: type[Reply], timeout_s: float = REPLY_S) -> Reply:
        return wire.decode(kind, self.send("GET", path, timeout_s=timeout_s))


def reading_s(size: int) -> float:
    """Timeout, in seconds, of a request for which the controller first reads `size` bytes.

    It is no longer than that, because only this timeout notices a connection that was lost silently.
    """
    return REPLY_S + size / READ_BYTES_S


def _refusal(response: httpx.Response) -> CurtailError:
    """The error that an unsuccessful `response` stands for."""
    status = response.status_code
    # An internal error of the controller, or of a proxy before it, counts as an outage: it may pass.
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
    """The detail in a body that is no `Problem`, cut to 200 characters."""
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    return str(value.get("detail", ""))[:200] if isinstance(value, dict) else ""


__all__ = ["Control", "check_url", "is_loopback", "open_http"]
