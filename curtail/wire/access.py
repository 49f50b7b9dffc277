"""Messages of access control: the controller's authority, credentials, tokens and nodes. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curtail.wire.bounds import Integer, Name, NameOrEmpty, Number, Real, String, Text, Whole, Word


@dataclass(frozen=True, slots=True)
class CaCerts:
    """Controller -> anyone, GET /v1/cacerts: the certificate of its authority. Trust it only if a pin matches."""

    pem: String


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """Agent -> controller, POST /v1/credential, signed: a new credential for a machine that joined before."""

    agent: Name
    site: Name


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """Operator -> controller, POST /v1/tokens: make a token."""

    role: Word  # agent, viewer, operator
    site: NameOrEmpty  # an agent may join with it as this site only; "": any
    region: NameOrEmpty  # ... in this region only; "": any
    uses: Annotated[int, Whole(1, 1_000_000)] | None  # machines that may join with it; None: no limit
    expires_s: Annotated[float, Real(0.0, 1e10)] | None  # seconds from now; None: never
    note: Annotated[str, Text(256)]  # free text


@dataclass(frozen=True, slots=True)
class TokenReply:
    """Controller -> operator: the new token. It is shown only here."""

    id: String
    token: String


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token without its secret."""

    id: String
    role: String
    site: String
    region: String
    uses: Integer | None
    used: Integer
    expires: Number | None
    created: Number
    revoked: Number | None
    note: String
    state: String  # good, or why not: expired, revoked, used up


@dataclass(frozen=True, slots=True)
class TokenList:
    """Controller -> operator, GET /v1/tokens."""

    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True, slots=True)
class TokenRevoke:
    """Operator -> controller, POST /v1/tokens/revoke: refuse further joins with it. Machines that joined stay.

    The answer is an `Ack`, not ok if the token was revoked before.
    """

    id: Name


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One machine that joined."""

    site: String
    region: String
    agent: String
    machine: String  # host name
    devices: Integer
    key: String  # fingerprint of its public key
    fence: Integer
    left: bool
    joined: Number
    seen_s: Number | None  # since its last heartbeat; None: none since the controller's start


@dataclass(frozen=True, slots=True)
class NodeList:
    """Controller -> operator, GET /v1/nodes."""

    nodes: tuple[NodeInfo, ...]


@dataclass(frozen=True, slots=True)
class NodeRemove:
    """Operator -> controller, POST /v1/nodes/remove: delete key and credential of a machine, or of all of a site."""

    site: Name
    agent: Name | None  # None: all machines of the site


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    """Controller -> operator: the number of machines removed."""

    count: Integer
