"""Who asks: the credentials of machines, signed requests, and what each role may do.

A machine's identity is its key; its credential is a bearer that lives for a day
and is replaced in a heartbeat once two thirds of that have passed. The new one
counts from its first use on, and the one before stays good for a while, so that
neither a lost answer nor a request under way locks anybody out. Secrets are 256
random bits, stored only as SHA-256 (they need no slow hash) and compared in
constant time. Times are Unix seconds.
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
"""How long a machine's credential is good for."""

RENEW_AFTER_S = 0.67 * LIFE_S
"""Age from which a heartbeat brings the next one."""

OVERLAP_S = 600.0
"""How long the credential before stays good once the next one was used: longer than any request takes."""


class Forbidden(AuthError):
    """Known here, but not allowed to do this."""


class Role(StrEnum):
    """What a caller may do: `controller.http.routes` names the roles of each path."""

    AGENT = "agent"
    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request with a good credential."""

    role: Role
    name: str  # for the log: the site, or the token's note
    machine: MachineRow | None = None  # of an agent

    def need(self, *roles: Role) -> None:
        """Raises: Forbidden: none of these is the caller's role."""
        if self.role not in roles:
            raise Forbidden(
                f"this needs the role {' or '.join(roles)}, the credential has the role {self.role}",
                "an operator makes tokens with `curtail token create --role ROLE`",
            )


def new_token(pin: str | None = None) -> Token:
    """A fresh token, which pins the authority with this key hash."""
    return Token(secrets.token_hex(4), secrets.token_hex(32), pin)


def new_credential() -> str:
    """What an agent shows with every request after it joined."""
    return secrets.token_hex(32)


def new_id() -> str:
    """A name that nothing else has; no secret."""
    return secrets.token_hex(4)


def hashed(secret: str) -> str:
    """The form in which a secret is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, stored: str) -> bool:
    """Does `secret` belong to the stored hash? Takes the same time either way."""
    return hmac.compare_digest(hashed(secret), stored)


# -- credentials of machines ---------------------------------------------------


def machine_of(tx: Transaction, credential: str, now: float) -> MachineRow:
    """The machine a credential belongs to. One that is used for the first time replaces the one before.

    Raises: AuthError: it is not known, or has ended.
    """
    shown = hashed(credential)
    row = tx.machine_by_credential(shown) if credential else None
    if row is None:
        raise AuthError("the credential is not known here", "join again with a join token")
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
        raise AuthError("the credential has expired", "the agent gets a new one by itself, by its key")


def next_credential(tx: Transaction, row: MachineRow, now: float) -> str | None:
    """A new credential for the machine once the present one is old; None: not yet. It counts from its first use on."""
    if now < row.expires_wall - LIFE_S + RENEW_AFTER_S:
        return None
    secret = new_credential()
    tx.set_machine(row.site, row.agent, next_credential=hashed(secret), next_expires_wall=now + LIFE_S)
    return secret


def fresh_credential(tx: Transaction, row: MachineRow, now: float) -> str:
    """A new credential for a machine that proved its key; it counts at once."""
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
    """Remember a signed request whose signature was checked. Raises: AuthError: it came before."""
    if not tx.see_nonce(key, stamp.nonce, stamp.time + SKEW_S + 1, now):
        raise AuthError("this signed request came before", "somebody sends again what was sent once")


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
