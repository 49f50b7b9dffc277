"""The routes of the controller: one table of path, method, roles, messages, signature, refusals and use case.

The application (`controller.http.app`) and the document at /openapi.json
(`controller.http.openapi`) are both made of `ROUTES`. To add a route, add its path to
`curtail.wire` and its row here. `controller.http.transfers` has the calls that stream bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from controller.auth import tokens
from controller.auth.credentials import Role
from controller.http import transfers
from controller.http.checks import AppContext, Incoming, Signed
from controller.service import snapshot
from controller.store import Transaction
from curtail import wire
from curtail.errors import AuthError, NotFound

Call = Callable[[AppContext, Incoming], Awaitable[Any]]
"""What answers a request that passed its checks: returns the route's message, or a whole response."""

EXAMPLE_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
EXAMPLE_DIGEST = "sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:"


@dataclass(frozen=True, slots=True)
class Header:
    """A header field that a route reads itself."""

    name: str
    example: str
    pattern: str = ""  # "": any text
    required: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    summary: str
    call: Call
    roles: tuple[Role, ...] = ()  # who may send it; (): anybody
    takes: type | None = None  # the message in the body; `bytes`: streamed; None: no body
    gives: type | None = None  # the message of the answer; `bytes`: a file; `str`: plain text
    signed: Signed | None = None
    refusals: tuple[int, ...] = ()  # statuses beside those that every route may answer
    headers: tuple[Header, ...] = ()
    rate_limited: bool = True  # counts against the rate of its sender
    status_view: bool = False  # needs no credential where the controller's status is open


def in_store(use_case: Callable[[AppContext, Transaction, Incoming], object]) -> Call:
    """The call that is one transaction on the store's thread."""

    async def call(context: AppContext, sent: Incoming) -> object:
        return await context.transact(lambda tx: use_case(context, tx, sent))

    return call


async def _join(context: AppContext, sent: Incoming) -> wire.JoinReply:
    stamp = sent.stamp(sent.body.key, context.now())
    return await context.transact(lambda tx: context.service.join(tx, sent.body, stamp))


async def _renew(context: AppContext, sent: Incoming) -> wire.JoinReply:
    row = await context.transact(lambda tx: tx.machine(sent.body.site, sent.body.agent))
    if row is None or not row.key:
        raise AuthError("no machine with this key joined here", "join with a join token")
    stamp = sent.stamp(row.key, context.now())
    return await context.transact(lambda tx: context.service.access.renew(tx, row, stamp))


async def _ca_certs(context: AppContext, sent: Incoming) -> wire.CaCerts:
    if not context.identity.authority:
        raise NotFound("this controller has no authority")
    return wire.CaCerts(context.identity.authority)


async def _run(context: AppContext, sent: Incoming) -> wire.RunInfo:
    return context.run_info


async def _health(context: AppContext, sent: Incoming) -> Response:
    reason = context.healthy()
    text = "ok\n" if reason is None else f"{reason}\n"
    return Response(text, 200 if reason is None else 503, media_type="text/plain")


AGENT, VIEWER, OPERATOR = (Role.AGENT,), (Role.VIEWER, Role.OPERATOR), (Role.OPERATOR,)
DIGEST = Header("Content-Digest", EXAMPLE_DIGEST, r"^sha-256=:[A-Za-z0-9+/]{43}=:$", required=True)
RANGE = Header("Range", "bytes=0-", r"^bytes=[0-9]{1,15}-[0-9]{0,15}$")
IF_RANGE = Header("If-Range", f'"{EXAMPLE_HASH}"')

ROUTES = (
    # -- machines ----------------------------------------------------------------
    Route("POST", wire.JOIN, "Join the run with a join token.", _join,
          takes=wire.JoinRequest, gives=wire.JoinReply, signed=Signed.KEY_OF_MESSAGE,
          refusals=(401, 403, 404, 409, 507)),
    Route("POST", wire.CREDENTIAL, "Renew a credential with the machine's key alone.", _renew,
          takes=wire.RenewRequest, gives=wire.JoinReply, signed=Signed.KEY_OF_MESSAGE, refusals=(401, 409, 507)),
    Route("GET", wire.CACERTS, "Get the certificate of the controller's authority.", _ca_certs,
          gives=wire.CaCerts, refusals=(404,)),
    Route("POST", wire.HEARTBEAT, "Report the machine's state; the answer holds its permit.",
          in_store(lambda context, tx, sent: context.service.heartbeat(tx, sent.machine, sent.body)),
          AGENT, wire.Heartbeat, wire.HeartbeatReply, Signed.NONCE_IN_MEMORY, (409, 507)),
    Route("POST", wire.LEAVE, "Leave the run.",
          in_store(lambda context, tx, sent: context.service.leave(tx, sent.machine, sent.body)),
          AGENT, wire.LeaveRequest, wire.Ack, Signed.NONCE_IN_MEMORY, (409, 507)),
    # -- jobs --------------------------------------------------------------------
    Route("GET", wire.RUN, "Get what is fixed for the whole run.", _run, AGENT, gives=wire.RunInfo),
    Route("POST", wire.CHECKOUT, "Ask for work.",
          in_store(lambda context, tx, sent: context.service.checkout(tx, sent.machine, sent.body)),
          AGENT, wire.CheckoutRequest, wire.CheckoutReply, Signed.NONCE_IN_MEMORY, (409, 507)),
    Route("POST", wire.PROGRESS, "Report the progress of a round.",
          in_store(lambda context, tx, sent: context.service.progress(tx, sent.machine, sent.body)),
          AGENT, wire.Progress, wire.ProgressReply, Signed.NONCE_IN_MEMORY, (409, 507)),
    Route("POST", wire.COMMIT, "Commit a contribution; a repeated request gets the first receipt.",
          in_store(lambda context, tx, sent: context.service.commit(tx, sent.machine, sent.body)),
          AGENT, wire.CommitRequest, wire.Receipt, Signed.NONCE_IN_STORE, (409, 507)),
    # -- files -------------------------------------------------------------------
    Route("POST", wire.BLOBS, "Reserve space for a file; the answer lists the missing parts.", transfers.offer,
          AGENT, wire.BlobOffer, wire.BlobStatus, refusals=(409, 507)),
    Route("PUT", wire.PART, "Upload one part of a reserved file.", transfers.part,
          AGENT, bytes, wire.Ack, refusals=(404, 507), headers=(DIGEST,), rate_limited=False),
    Route("POST", wire.BLOB_COMMIT, "Complete an upload: verify the whole file and keep it.", transfers.finish,
          AGENT, None, wire.BlobStatus, Signed.NONCE_IN_STORE, (404, 409, 507)),
    Route("GET", wire.BLOB, "Download a file, or the rest of it.", transfers.download,
          AGENT, None, bytes, refusals=(404, 416), headers=(RANGE, IF_RANGE), rate_limited=False),
    # -- people ------------------------------------------------------------------
    Route("GET", wire.STATUS, "Get the status snapshot.",
          in_store(lambda context, tx, sent: snapshot.make(tx, context.service)),
          VIEWER, gives=wire.Status, status_view=True),
    Route("GET", wire.TOKENS, "List all tokens, without their secrets.",
          in_store(lambda context, tx, sent: tokens.listing(tx, context.now())),
          OPERATOR, gives=wire.TokenList),
    Route("POST", wire.TOKENS, "Create a token.",
          in_store(lambda context, tx, sent: context.service.access.create_token(
              tx, sent.body, context.identity.pin, sent.sender)),
          OPERATOR, wire.TokenRequest, wire.TokenReply, refusals=(404, 409, 507)),
    Route("POST", wire.TOKEN_REVOKE, "Revoke a token.",
          in_store(lambda context, tx, sent: context.service.access.revoke_token(tx, sent.body.id, sent.sender)),
          OPERATOR, wire.TokenRevoke, wire.Ack, refusals=(404, 507)),
    Route("GET", wire.NODES, "List all machines that joined.",
          in_store(lambda context, tx, sent: context.service.access.nodes(tx)),
          OPERATOR, gives=wire.NodeList),
    Route("POST", wire.NODE_REMOVE, "Forget a machine, or all of a site.",
          in_store(lambda context, tx, sent: context.service.access.remove_node(tx, sent.body, sent.sender)),
          OPERATOR, wire.NodeRemove, wire.NodeRemoved, refusals=(404, 507)),
    Route("POST", wire.OVERRIDE, "Make all sites of a region train or pause for a limited time.",
          in_store(lambda context, tx, sent: context.service.override(tx, sent.body)),
          OPERATOR, wire.OverrideRequest, wire.Ack, refusals=(404, 409, 507)),
    Route("GET", wire.PROVISION, "List the sites with a provisioner, and their machines.",
          in_store(lambda context, tx, sent: context.service.elastic.status(tx)),
          VIEWER, gives=wire.ProvisionStatus),
    Route("POST", wire.SITE_ORDER, "Keep a site's machines up or down, or leave them to the policy.",
          in_store(lambda context, tx, sent: context.service.elastic.order(tx, sent.body)),
          OPERATOR, wire.SiteOrder, wire.Ack, refusals=(404, 507)),
    Route("GET", wire.HEALTH, "Check the controller's health.", _health, gives=str, rate_limited=False),
)  # fmt: skip
