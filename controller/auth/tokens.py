"""Creates, lists, revokes and checks tokens for agents, viewers and operators.

A token for agents admits as many machines as its uses allow, and none after it has
expired or was revoked; machines that joined before stay in the run. Tokens for
viewers and operators are sent with each request instead. All functions run inside
one transaction; times are Unix seconds.
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
"""Most tokens in the store, including revoked ones."""

UNKNOWN = "copy the file join-token from this controller's folder, or create a token with `curtail token create`"


def create(tx: Transaction, request: TokenRequest, pin: str | None, now: float) -> TokenReply:
    """Create a token. Its text is in the reply and cannot be read again later.

    Args: pin: hash of the public key of the controller's CA.
    Raises: UsageError: the request is invalid. Refused: there are too many tokens.
    """
    if request.role not in tuple(Role):
        raise UsageError(f"there is no role {request.role!r}", f"use one of {', '.join(Role)}")
    if request.role != Role.AGENT and (request.site or request.region or request.uses is not None):
        raise UsageError(f"a token for the role {request.role} cannot have a site, region or uses", "leave them out")
    if request.uses is not None and not 1 <= request.uses <= MOST_USES:
        raise UsageError(f"a token can have 1 to {MOST_USES} uses, not {request.uses}")
    if request.expires_s is not None and not request.expires_s > 0:
        raise UsageError("the token would have expired already", "give a longer time")
    if max(len(request.note), len(request.site), len(request.region)) > LONGEST_NOTE:
        raise UsageError(f"a note or name has more than {LONGEST_NOTE} characters", "make it shorter")
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
    """Revoke a token. Returns: False if it was revoked before. Raises: NotFound."""
    row = tx.token(token_id)
    if row is None:
        raise NotFound(f"there is no token {token_id!r}", "`curtail token list` shows the ids")
    if row.revoked_wall is not None:
        return False
    tx.set_token(token_id, revoked_wall=now)
    return True


def state(row: TokenRow, now: float) -> str | None:
    """Why a token is no longer valid, or None."""
    if row.revoked_wall is not None:
        return "revoked"
    if row.expires_wall is not None and now >= row.expires_wall:
        return "expired"
    if row.uses is not None and row.used >= row.uses:
        return "used up"
    return None


def admit(tx: Transaction, text: str, site: str, region: str, known: bool, now: float) -> TokenRow:
    """Check the token of a machine that joins, and count the use.

    Args: known: the machine proved a key that joined before; then a used-up or expired token is accepted.
    Raises: AuthError: the token is unknown or invalid. Forbidden: it is for another role, site or region.
    """
    row = _find(tx, text)
    why = state(row, now)
    if why == "revoked" or (why is not None and not known):
        raise AuthError(f"the join token is {why}", "get a new one: `curtail token create` on the controller's machine")
    if row.role not in (Role.AGENT, Role.OPERATOR):
        raise Forbidden(f"this token has the role {row.role}; agents cannot join with it", "use a token for agents")
    for what, allowed, asked in (("site", row.site, site), ("region", row.region, region)):
        if allowed and allowed != asked:
            raise Forbidden(
                f"the join token is for the {what} {allowed!r}, not for {asked!r}",
                f"join as {allowed!r}, or get another token",
            )
    if not known:
        tx.set_token(row.id, used=row.used + 1)
    return row


def caller(tx: Transaction, text: str, now: float) -> Caller:
    """The caller whose request has this token. Raises: AuthError. Forbidden: it is a token for agents."""
    row = _find(tx, text)
    why = state(row, now)
    if why is not None:
        raise AuthError(f"the token is {why}", "get a new one: `curtail token create` on the controller's machine")
    if row.role == Role.AGENT:
        raise Forbidden(
            "this is a token for agents to join with", "create another with `curtail token create --role viewer`"
        )
    return Caller(Role(row.role), row.note or f"{row.role} {row.id}")


def _find(tx: Transaction, text: str) -> TokenRow:
    token = credentials.parse_token(text)
    row = tx.token(token.id)
    if row is None or not credentials.matches(token.secret, row.secret):
        raise AuthError("the controller does not know this token", UNKNOWN)
    return row
