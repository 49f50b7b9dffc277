"""Who may join: join tokens and the credentials they are exchanged for.

A token has the form ct0.<id>.<secret>: ct0 says that it pins no certificate,
since plain HTTP is served on loopback only; the form that pins the
controller's certificate takes its place with TLS. Secrets are 256 random bits,
stored only as SHA-256 (they need no slow hash) and compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from curtail.errors import AuthError


@dataclass(frozen=True, slots=True)
class Token:
    """A join token in its two halves."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"ct0.{self.id}.{self.secret}"


def new_token() -> Token:
    """A fresh join token."""
    return Token(secrets.token_hex(4), secrets.token_hex(32))


def parse_token(text: str) -> Token:
    """The token in `text`. Raises: AuthError: it has another form."""
    parts = text.strip().split(".")
    if len(parts) != 3 or parts[0] != "ct0" or not parts[1] or not parts[2]:
        raise AuthError(
            "the join token has the wrong form", "copy all of it from the controller's folder, file join-token"
        )
    return Token(parts[1], parts[2])


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
