"""The paths of the contract, its version, the sizes that both ends keep to, and the answers that many paths share."""

from __future__ import annotations

from dataclasses import dataclass

from curtail.wire.bounds import String

PROTOCOL = 7
"""Raised whenever a message changes; both ends refuse another number at join."""

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
HEALTH = "/healthz"

PART_BYTES = 16 * 1024 * 1024
"""Size of all parts of an upload but the last; bounds what one request holds in memory."""

MAX_BODY = 1024 * 1024
"""Bytes of the largest JSON answer that is read; what a controller reads is bounded by `limits.MAX_REQUEST`."""


@dataclass(frozen=True, slots=True)
class Ack:
    """A request was carried out."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """Any refused request: what was wrong and what to do."""

    error: String  # name of the CurtailError
    message: String
    remedy: String
