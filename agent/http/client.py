"""Control messages to the controller: one typed call per path of `curtail.wire`.

Decides how answers and failures become values and `CurtailError`s; it does not
retry, but for a request whose signature bore a wrong time, and moves no weights
(`agent.http.transfer` does). The `httpx.Client` is handed
in, with the controller's address as its base; who may answer there is decided
in `curtail.security.tls`. Every call has a timeout, in seconds. What makes a
contribution count is signed with the agent's key.
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
"""Where a caller does not say how large a file is: the weights of d20."""

READ_BYTES_S = 20e6
"""A controller that hashes or reads a file before it answers does so at this rate at least: bytes per second."""

SAME_S = 60.0
"""Seconds by which two looks at the controller's time of day may differ with nobody having set a clock."""

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
        credential: sent as bearer with every call; None before the agent has joined.
        link: the limit that `agent.http.transfer` keeps to; None: no limit.
        signer: signs what must be signed; None: nothing can be joined or committed.
        reread: the credential as it is now, for a job: its agent gets a new one every few hours.
        clock: tells when a controller that asked for patience may be asked again; None: the system's.
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
        """Be admitted with a token; the reply's credential is used from now on.

        Raises: AuthError, Refused, WireError, Unreachable.
        """
        request = dataclasses.replace(request, machine=limits.clean(request.machine, 255))
        reply = self._post(wire.JOIN, request, wire.JoinReply, signed=True)
        self.credential = reply.credential
        return reply

    def renew(self, request: wire.RenewRequest) -> wire.JoinReply:
        """A new credential by the agent's key alone; it is used from now on.

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
        """Say what this agent does; hear whether it may train.

        Raises: AuthError, Refused (another agent speaks for the site), Unreachable.
        """
        beat = dataclasses.replace(beat, note=limits.clean(beat.note))
        return self._post(wire.HEARTBEAT, beat, wire.HeartbeatReply, timeout_s, signed=True)

    def leave(self, request: wire.LeaveRequest, timeout_s: float = 5.0) -> wire.Ack:
        """Stop for good."""
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
        """Tell how far the round is; hear whether it should end."""
        return self._post(wire.PROGRESS, progress, wire.ProgressReply, timeout_s, signed=True)

    def commit(self, request: wire.CommitRequest, size: int = MOST_BYTES) -> wire.Receipt:
        """Hand in a contribution whose blob, of `size` bytes, is already there; a repeat gets the first receipt.

        Raises: Refused: another base, fence or round.
        """
        return self._post(wire.COMMIT, request, wire.Receipt, reading_s(size), signed=True)

    def offer_blob(self, offer: wire.BlobOffer) -> wire.BlobStatus:
        """Reserve room for a file; hear which parts are missing.

        Raises: DiskError: the controller has no room.
        """
        return self._post(wire.BLOBS, offer, wire.BlobStatus, reading_s(offer.size))

    def commit_blob(self, sha256: str, size: int) -> None:
        """All parts are there, `size` bytes: check the whole and keep it.

        Raises: Refused: a part is missing or the content has another hash.
        """
        path = wire.BLOB_COMMIT.format(sha256=sha256)
        self._send_signed(path, b"", {}, reading_s(size))

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

        Raises: as `send`; also inside the block, when the connection is cut. Throttled: the controller asked for
            patience, now or lately; in the second case nothing was sent.
        """
        heartbeat = path == wire.HEARTBEAT
        left = self._throttle.left(heartbeat, self._clock.monotonic())
        if left > 0:
            raise Throttled(f"the controller at {self.address} asked to come again in {left:.1f} s")
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
                raise Unreachable(f"no TLS connection to {self.address} comes about", remedy) from error
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
        """Send it with a signature; a second time where the refusal told that the time it was signed with was wrong."""
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
        """Requests are signed with the controller's time of day, so that this machine's may be wrong."""
        said = response.headers.get("date")
        if self.signer is None or not said:
            return
        with contextlib.suppress(ValueError):
            self.signer.ahead_s = email.utils.parsedate_to_datetime(said).timestamp() - self.signer.wall()

    def _get(self, path: str, kind: type[Reply], timeout_s: float = REPLY_S) -> Reply:
        return wire.decode(kind, self.send("GET", path, timeout_s=timeout_s))


def reading_s(size: int) -> float:
    """Longest wait for an answer for which the controller first reads `size` bytes.

    No longer than that takes: a connection that was lost without a word is noticed by this alone, and a round does
    not wait.
    """
    return REPLY_S + size / READ_BYTES_S


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


__all__ = ["Control", "check_url", "is_loopback", "open_http"]
