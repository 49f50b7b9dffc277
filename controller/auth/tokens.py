"""Tokens: made, listed, revoked, and spent by machines that join.

A token for agents admits machines, as many as its uses say, and none after it
expired or was revoked; who is in stays in. Tokens for viewers and operators are
shown with each request instead. All functions run inside one transaction; times
are Unix seconds.
"""

from __future__ import annotations

from controller.auth import credentials
from controller.auth.credentials import Caller, Forbidden, Role
from controller.store import Transaction
from controller.store.rows import TokenRow
from curtail.errors import AuthError, NotFound, Refused, UsageError
from curtail.wire import TokenInfo, TokenList, TokenReply, TokenRequest

LONGEST_NOTE = 200
MOST_USES = 1_000_000
MOST_TOKENS = 10_000
"""Tokens that are kept, the revoked ones too."""

UNKNOWN = "copy the file join-token of this controller's folder, or make one with `curtail token create`"


def create(tx: Transaction, request: TokenRequest, pin: str | None, now: float) -> TokenReply:
    """A new token; its text is told this once.

    Args: pin: hash of the public key of the controller's authority.
    Raises: UsageError: such a token cannot be.
    """
    if request.role not in tuple(Role):
        raise UsageError(f"there is no role {request.role!r}", f"use one of {', '.join(Role)}")
    if request.role != Role.AGENT and (request.site or request.region or request.uses is not None):
        raise UsageError(f"a token for the role {request.role} has no site, region or uses", "leave them out")
    if request.uses is not None and not 1 <= request.uses <= MOST_USES:
        raise UsageError(f"a token has 1 to {MOST_USES} uses, not {request.uses}")
    if request.expires_s is not None and not request.expires_s > 0:
        raise UsageError("a token cannot have expired when it is made", "give a longer time")
    if max(len(request.note), len(request.site), len(request.region)) > LONGEST_NOTE:
        raise UsageError(f"a note or name of more than {LONGEST_NOTE} characters", "make it shorter")
    if len(tx.tokens()) >= MOST_TOKENS:
        raise Refused(f"there are {MOST_TOKENS} tokens already")
    token = credentials.new_token(pin)
    tx.add_token(
        TokenRow(
            id=token.id,
            secret=credentials.hashed(token.secret),
            created_wall=now,
            role=request.role,
            site=request.site,
            region=request.region,
            uses=request.uses,
            expires_wall=None if request.expires_s is None else now + request.expires_s,
            note=request.note,
        )
    )
    return TokenReply(token.id, str(token))


def listing(tx: Transaction, now: float) -> TokenList:
    """All tokens, without their secrets."""
    return TokenList(
        tuple(
            TokenInfo(
                row.id, row.role, row.site, row.region, row.uses, row.used, row.expires_wall, row.created_wall,
                row.revoked_wall, row.note, state(row, now) or "good",
            )
            for row in tx.tokens()
        )
    )  # fmt: skip


def revoke(tx: Transaction, token_id: str, now: float) -> bool:
    """Nobody gets in with it any more. Returns: False: it was revoked before. Raises: NotFound."""
    row = tx.token(token_id)
    if row is None:
        raise NotFound(f"there is no token {token_id!r}", "`curtail token list` shows their ids")
    if row.revoked_wall is not None:
        return False
    tx.set_token(token_id, revoked_wall=now)
    return True


def state(row: TokenRow, now: float) -> str | None:
    """Why a token is no good any more, or None."""
    if row.revoked_wall is not None:
        return "revoked"
    if row.expires_wall is not None and now >= row.expires_wall:
        return "expired"
    if row.uses is not None and row.used >= row.uses:
        return "used up"
    return None


def admit(tx: Transaction, text: str, site: str, region: str, known: bool, now: float) -> TokenRow:
    """Let a machine in that shows this token, and count the use.

    Args: known: the machine proved a key that joined before; then a token that is used up or expired will do.
    Raises: AuthError: the token is unknown or no good. Forbidden: it is for something else.
    """
    row = _find(tx, text)
    why = state(row, now)
    if why == "revoked" or (why is not None and not known):
        raise AuthError(f"the join token is {why}", "get a new one: `curtail token create` on the controller's machine")
    if row.role not in (Role.AGENT, Role.OPERATOR):
        raise Forbidden(f"this is a token for the role {row.role}, no agent joins with it", "use a token for agents")
    for what, allowed, asked in (("site", row.site, site), ("region", row.region, region)):
        if allowed and allowed != asked:
            raise Forbidden(
                f"the join token is for the {what} {allowed!r}, not for {asked!r}",
                f"join as {allowed!r}, or get another",
            )
    if not known:
        tx.set_token(row.id, used=row.used + 1)
    return row


def caller(tx: Transaction, text: str, now: float) -> Caller:
    """Whoever shows this token with a request. Raises: AuthError, Forbidden: a token for agents, who have to join."""
    row = _find(tx, text)
    why = state(row, now)
    if why is not None:
        raise AuthError(f"the token is {why}", "get a new one: `curtail token create` on the controller's machine")
    if row.role == Role.AGENT:
        raise Forbidden(
            "this is a token for agents, which join with it", "make one with `curtail token create --role viewer`"
        )
    return Caller(Role(row.role), row.note or f"{row.role} {row.id}")


def _find(tx: Transaction, text: str) -> TokenRow:
    token = credentials.parse_token(text)
    row = tx.token(token.id)
    if row is None or not credentials.matches(token.secret, row.secret):
        raise AuthError("the join token is not known here", UNKNOWN)
    return row
