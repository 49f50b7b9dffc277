"""Paths and version of the HTTP API, sizes that both ends use, and shared responses."""

from __future__ import annotations

from dataclasses import dataclass

from curtail.wire.bounds import String

PROTOCOL = 8
"""Increased whenever a message changes; a join with another number is refused."""

PREFIX = "/v1"
JOIN = "/v1/join"
CACERTS = "/v1/cacerts"
CREDENTIAL = "/v1/credential"
HEARTBEAT = "/v1/heartbeat"
LEAVE = "/v1/leave"
RUN = "/v1/run"
CHECKOUT = "/v1/rounds/checkout"
PROGRESS = "/v1/rounds/progress"
COMMIT = "/v1/rounds/commit"
BLOBS = "/v1/blobs"
BLOB = "/v1/blobs/{sha256}"
PART = "/v1/blobs/{sha256}/parts/{number}"
BLOB_COMMIT = "/v1/blobs/{sha256}/commit"
STATUS = "/v1/status"
OVERRIDE = "/v1/override"
TOKENS = "/v1/tokens"
TOKEN_REVOKE = "/v1/tokens/revoke"
NODES = "/v1/nodes"
NODE_REMOVE = "/v1/nodes/remove"
PROVISION = "/v1/provision"
SITE_ORDER = "/v1/provision/order"
HEALTH = "/healthz"

PART_BYTES = 16 * 1024 * 1024
"""Size of every part of an upload except the last; limits the memory of one request."""

MAX_BODY = 1024 * 1024
"""Largest JSON response that a client reads, bytes; the controller's limit is `limits.MAX_REQUEST`."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Whether the request changed anything."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """The body of every refused request: what was wrong and what to do."""

    error: String  # name of the CurtailError
    message: String
    remedy: String
