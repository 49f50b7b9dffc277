"""An agent's Ed25519 key, and the signature of its requests.

A signature covers the method, the path, the body's SHA-256, the fencing token, the
time and a nonce, so that a request that was observed cannot be replayed. This
module checks signature and time. The controller remembers the nonces:
`controller.auth.credentials` in its store, `controller.auth.nonces` in memory.

Why not RFC 9421 (HTTP Message Signatures): both ends are this project, so nothing
is gained by a format that other software can read. RFC 9421 lets each message
choose the signed components and writes them as structured header fields, which the
verifier must parse, canonicalise and then restrict again to a fixed list. Here the
list is fixed, and the signed text is one line.

Why not client certificates issued by the controller's own CA, as kubelets have: an
ASGI application cannot see them. ASGI specifies a TLS extension for that, but
uvicorn, which the controller uses, does not implement it (checked with 0.54), nor
does Hypercorn (its issue 62 is open). And TLS would authenticate a connection;
here each request is signed together with its fencing token and nonce.

Times are Unix seconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from curtail.errors import AuthError

HEADER = "Curtail-Signature"

SKEW_S = 300.0
"""Largest allowed difference between a request's time and the controller's clock, in seconds."""

FORM = re.compile(r"v1;time=(\d{1,12});nonce=([0-9a-f]{32});fence=(-?\d{1,12});sig=([A-Za-z0-9+/=]{88})")


@dataclass(frozen=True, slots=True)
class Stamp:
    """The parsed signature header of a request."""

    time: int
    nonce: str
    fence: int
    signature: bytes


class AgentKey:
    """A private key, which never leaves its machine."""

    def __init__(self, pem: bytes | None = None) -> None:
        """Load the key in `pem`, or generate a new one. Raises: AuthError: `pem` does not hold an Ed25519 key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        if pem is None:
            self._key = Ed25519PrivateKey.generate()
            return
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise AuthError(
                "this file does not hold an agent's key",
                "delete it: the agent will make a new key and join again",
            )
        self._key = key

    @property
    def pem(self) -> bytes:
        """The private key; store it readable by its owner only."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public(self) -> str:
        """The public key, 44 characters of base64."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return base64.b64encode(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()

    def header(self, method: str, path: str, body: bytes, fence: int, now: float, nonce: str | None = None) -> str:
        """The value of `HEADER` for one request at the Unix time `now`. `nonce`: 32 hex digits; None: at random."""
        nonce, time = nonce or secrets.token_hex(16), int(now)
        signature = self._key.sign(_message(method, path, body, fence, time, nonce))
        return f"v1;time={time};nonce={nonce};fence={fence};sig={base64.b64encode(signature).decode()}"


@dataclass(slots=True)
class Signer:
    """Signs the requests of one agent or job.

    Args:
        wall: this machine's Unix time.
        ahead_s: seconds by which the controller's clock is ahead of this one, from its latest answer; the two
            clocks need not agree.
    Nonces hold a counter, so that the controller can detect replays without keeping a list of all nonces.
    """

    key: AgentKey
    wall: Callable[[], float]
    fence: int = 0
    ahead_s: float = 0.0
    _life: str = field(default_factory=lambda: secrets.token_hex(8))
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # from any thread

    def header(self, method: str, path: str, body: bytes) -> str:
        """The value of `HEADER` for one request."""
        nonce = f"{self._life}{next(self._count):016x}"
        return self.key.header(method, path, body, self.fence, self.wall() + self.ahead_s, nonce)


def read_stamp(header: str | None) -> Stamp:
    """Parse the signature header of a request. Raises: AuthError: the header is missing or malformed."""
    found = FORM.fullmatch(header or "")
    if found is None:
        raise AuthError(
            "this request must be signed with the agent's key",
            "use the same version of curtail on the agent and on the controller",
        )
    try:
        signature = base64.b64decode(found[4], validate=True)
    except binascii.Error:
        raise AuthError("the signature of this request is not valid base64") from None
    return Stamp(int(found[1]), found[2], int(found[3]), signature)


def check(stamp: Stamp, public: str, method: str, path: str, body: bytes, now: float) -> None:
    """Check the signature against the key `public` and the request's time against `now`; replays are not detected here.

    Raises: AuthError: wrong key, altered content, or a time too far from `now`; the message has the measured skew.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
        key.verify(stamp.signature, _message(method, path, body, stamp.fence, stamp.time, stamp.nonce))
    except (InvalidSignature, ValueError):
        raise AuthError("the request is not signed with the key with which this agent joined") from None
    skew = stamp.time - now
    if abs(skew) > SKEW_S:
        word = "ahead of" if skew > 0 else "behind"
        raise AuthError(
            f"the request was signed {abs(skew):.0f} s {word} the controller's clock; the limit is {SKEW_S:.0f} s",
            "synchronise both clocks (NTP)",
        )


def fingerprint(public: str) -> str:
    """The first 12 hex digits of a public key's hash, for display; "-" without a key."""
    return hashlib.sha256(public.encode()).hexdigest()[:12] if public else "-"


def _message(method: str, path: str, body: bytes, fence: int, time: int, nonce: str) -> bytes:
    parts = ("curtail v1", method, path, hashlib.sha256(body).hexdigest(), str(fence), str(time), nonce)
    return "|".join(parts).encode()
