"""Authenticates callers: credentials of machines, replay protection in the store, and roles.

A machine's identity is its key. Its credential is a bearer token that is valid for
a day; a heartbeat brings the next one after two thirds of that. The new one takes
effect at its first use, and the previous one stays valid for a while, so that
neither a lost reply nor a request under way locks a machine out. Secrets are 256
random bits. They are stored only as SHA-256 (random secrets need no slow hash) and
compared in constant time. Times are Unix seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum

from controller.store import Transaction
from controller.store.rows import MachineRow
from curtail.errors import AuthError
from curtail.security.signing import SKEW_S, Stamp
from curtail.security.token import Token, parse_token

LIFE_S = 24 * 3600.0
"""How long a machine's credential is valid."""

RENEW_AFTER_S = 0.67 * LIFE_S
"""Age of a credential after which a heartbeat brings the next one."""

OVERLAP_S = 600.0
"""How long the previous credential stays valid after the first use of the next: longer than any request takes."""


class Forbidden(AuthError):
    """The caller is authenticated, but not allowed to do this."""


class Role(StrEnum):
    """The role of a caller; `controller.http.routes` names the roles for each path."""

    AGENT = "agent"
    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated sender of a request."""

    role: Role
    name: str  # for the log: the site, or the token's note
    machine: MachineRow | None = None  # of an agent

    def need(self, *roles: Role) -> None:
        """Raises: Forbidden: the caller has none of these roles."""
        if self.role not in roles:
            raise Forbidden(
                f"this needs the role {' or '.join(roles)}, but the credential has the role {self.role}",
                "an operator can create a token with `curtail token create --role ROLE`",
            )


def new_token(pin: str | None = None) -> Token:
    """A new random token with this pin: the hash of the CA's public key."""
    return Token(secrets.token_hex(4), secrets.token_hex(32), pin)


def new_credential() -> str:
    """A new random credential, which an agent sends with every request after its join."""
    return secrets.token_hex(32)


def new_id() -> str:
    """A new unique id; not secret."""
    return secrets.token_hex(4)


def hashed(secret: str) -> str:
    """The form in which a secret is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, stored: str) -> bool:
    """Does `secret` belong to the stored hash? Takes the same time either way."""
    return hmac.compare_digest(hashed(secret), stored)


# -- credentials of machines ---------------------------------------------------


def machine_of(tx: Transaction, credential: str, now: float) -> MachineRow:
    """The machine of a credential. The first use of a next credential makes it the current one.

    Raises: AuthError: the credential is unknown or has expired.
    """
    shown = hashed(credential)
    row = tx.machine_by_credential(shown) if credential else None
    if row is None:
        raise AuthError("the controller does not know this credential", "join again with a join token")
    if hmac.compare_digest(shown, row.credential):
        _check_end(row.expires_wall, now)
    elif hmac.compare_digest(shown, row.next_credential):
        _check_end(row.next_expires_wall, now)
        tx.set_machine(
            row.site,
            row.agent,
            credential=row.next_credential,
            expires_wall=row.next_expires_wall,
            next_credential="",
            former_credential=row.credential,
            former_until_wall=min(row.expires_wall, now + OVERLAP_S),
        )
        fresh = tx.machine(row.site, row.agent)
        assert fresh is not None
        return fresh
    else:
        _check_end(row.former_until_wall, now)
    return row


def _check_end(until: float, now: float) -> None:
    if now >= until:
        raise AuthError("the credential has expired", "the agent gets a new one by itself, with its key")


def next_credential(tx: Transaction, row: MachineRow, now: float) -> str | None:
    """A new credential if the present one is due for renewal, else None. It takes effect at its first use."""
    if now < row.expires_wall - LIFE_S + RENEW_AFTER_S:
        return None
    secret = new_credential()
    tx.set_machine(row.site, row.agent, next_credential=hashed(secret), next_expires_wall=now + LIFE_S)
    return secret


def fresh_credential(tx: Transaction, row: MachineRow, now: float) -> str:
    """A new credential for a machine that proved its key; it takes effect at once."""
    secret = new_credential()
    tx.set_machine(
        row.site,
        row.agent,
        credential=hashed(secret),
        expires_wall=now + LIFE_S,
        next_credential="",
        former_credential=row.credential,
        former_until_wall=min(row.expires_wall, now + OVERLAP_S),
    )
    return secret


def first_time(tx: Transaction, key: str, stamp: Stamp, now: float) -> None:
    """Store the nonce of a request whose signature was checked. Raises: AuthError: it was seen before."""
    if not tx.see_nonce(key, stamp.nonce, stamp.time + SKEW_S + 1, now):
        raise AuthError("this signed request was seen before", "it may be a replay attack")


__all__ = [
    "LIFE_S",
    "Caller",
    "Forbidden",
    "Role",
    "Token",
    "first_time",
    "fresh_credential",
    "hashed",
    "machine_of",
    "matches",
    "new_credential",
    "new_id",
    "new_token",
    "next_credential",
    "parse_token",
]
