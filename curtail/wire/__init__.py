"""All paths and message bodies of the HTTP API between agents, jobs and the controller.

Bodies are JSON objects of frozen dataclasses, one module for each area of the
contract; `encode` and `decode` are strict in both directions. Weights and token
files travel as raw bytes named by their SHA-256, never as JSON. Nothing here
opens a connection. Times to come are sent as durations in seconds, so the clocks of
both ends need not agree. A new field carries its bound as an annotation,
see `curtail.wire.bounds`; without one its message cannot be decoded.
"""

from __future__ import annotations

from curtail.wire.access import (
    CaCerts,
    NodeInfo,
    NodeList,
    NodeRemove,
    NodeRemoved,
    RenewRequest,
    TokenInfo,
    TokenList,
    TokenReply,
    TokenRequest,
    TokenRevoke,
)
from curtail.wire.bounds import annotations_of, bound_of, hints_of
from curtail.wire.codec import decode, encode
from curtail.wire.fleet import Crew, Heartbeat, HeartbeatReply, JoinReply, JoinRequest, LeaveRequest, Power, counts
from curtail.wire.protocol import (
    BLOB,
    BLOB_COMMIT,
    BLOBS,
    CACERTS,
    CHECKOUT,
    COMMIT,
    CREDENTIAL,
    HEALTH,
    HEARTBEAT,
    JOIN,
    LEAVE,
    MAX_BODY,
    NODE_REMOVE,
    NODES,
    OVERRIDE,
    PART,
    PART_BYTES,
    PREFIX,
    PROGRESS,
    PROTOCOL,
    PROVISION,
    RUN,
    SITE_ORDER,
    STATUS,
    TOKEN_REVOKE,
    TOKENS,
    Ack,
    Problem,
)
from curtail.wire.provision import MachineStatus, ProvisionStatus, SiteDemand, SiteOrder
from curtail.wire.rounds import (
    Assignment,
    BlobOffer,
    BlobStatus,
    CheckoutReply,
    CheckoutRequest,
    CommitRequest,
    Progress,
    ProgressReply,
    Receipt,
    RunInfo,
)
from curtail.wire.status import (
    CostsStatus,
    EnergyStatus,
    EventStatus,
    KeptStatus,
    LateStatus,
    OverrideRequest,
    OverrideStatus,
    PlanStatus,
    RegionStatus,
    RoundStatus,
    SiteStatus,
    Status,
)

__all__ = [
    "BLOB", "BLOBS", "BLOB_COMMIT", "CACERTS", "CHECKOUT", "COMMIT", "CREDENTIAL", "HEALTH", "HEARTBEAT", "JOIN",
    "LEAVE", "MAX_BODY", "NODES", "NODE_REMOVE", "OVERRIDE", "PART", "PART_BYTES", "PREFIX", "PROGRESS", "PROTOCOL",
    "PROVISION", "RUN", "SITE_ORDER", "STATUS", "TOKENS", "TOKEN_REVOKE",
    "Ack", "Assignment", "BlobOffer", "BlobStatus", "CaCerts", "CheckoutReply", "CheckoutRequest", "CommitRequest",
    "CostsStatus", "Crew", "EnergyStatus", "EventStatus", "Heartbeat", "HeartbeatReply", "JoinReply", "JoinRequest",
    "KeptStatus", "LateStatus", "LeaveRequest", "MachineStatus", "NodeInfo", "NodeList", "NodeRemove", "NodeRemoved",
    "OverrideRequest", "OverrideStatus", "PlanStatus", "Power", "Problem", "Progress", "ProgressReply",
    "ProvisionStatus", "Receipt", "RegionStatus", "RenewRequest", "RoundStatus", "RunInfo", "SiteDemand", "SiteOrder",
    "SiteStatus", "Status", "TokenInfo", "TokenList", "TokenReply", "TokenRequest", "TokenRevoke",
    "annotations_of", "bound_of", "counts", "decode", "encode", "hints_of",
]  # fmt: skip
