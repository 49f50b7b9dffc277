"""Access: the controller's authority, credentials, tokens and nodes. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CaCerts:
    """Controller -> anyone, GET /v1/cacerts: the certificate of its authority. Worth nothing without a token's pin."""

    pem: str


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """Agent -> controller, POST /v1/credential, signed: a new credential for a machine that joined before."""

    agent: str
    site: str


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """Operator -> controller, POST /v1/tokens: make a token."""

    role: str  # agent, viewer, operator
    site: str  # an agent may join with it as this site only; "": any
    region: str  # ... in this region only; "": any
    uses: int | None  # machines that may join with it; None: no limit
    expires_s: float | None  # from now; None: never
    note: str  # for people


@dataclass(frozen=True, slots=True)
class TokenReply:
    """Controller -> operator: the token, this once."""

    id: str
    token: str


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What is known of a token; never its secret."""

    id: str
    role: str
    site: str
    region: str
    uses: int | None
    used: int
    expires: float | None
    created: float
    revoked: float | None
    note: str
    state: str  # good, or why not: expired, revoked, used up


@dataclass(frozen=True, slots=True)
class TokenList:
    """Controller -> operator, GET /v1/tokens."""

    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True, slots=True)
class TokenRevoke:
    """Operator -> controller, POST /v1/tokens/revoke: nobody gets in with it any more. Who is in stays.

    The answer is an `Ack`, not ok if the token was revoked before.
    """

    id: str


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One machine that joined."""

    site: str
    region: str
    agent: str
    machine: str  # host name
    devices: int
    key: str  # fingerprint of its public key
    fence: int
    left: bool
    joined: float
    seen_s: float | None  # since it was heard from; None: not since the controller's start


@dataclass(frozen=True, slots=True)
class NodeList:
    """Controller -> operator, GET /v1/nodes."""

    nodes: tuple[NodeInfo, ...]


@dataclass(frozen=True, slots=True)
class NodeRemove:
    """Operator -> controller, POST /v1/nodes/remove: forget a machine's key and credential, or those of all."""

    site: str
    agent: str | None  # None: all machines of the site


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    """Controller -> operator: how many machines were forgotten."""

    count: int
