"""The token that admits an agent, viewer or operator: kubeadm's bootstrap token with a CA pin.

The form is `ct1.<pin>.<id>.<secret>.<checksum>`. Id and secret are those of a
kubeadm bootstrap token. The pin is the SHA-256 of the CA's public key, as in
kubeadm's `--discovery-token-ca-cert-hash`: the holder can authenticate the
controller before it sends anything secret. The checksum detects a truncated or
mistyped token without a request. `ct0.<id>.<secret>` has no pin and is only for
plain HTTP on loopback. Nothing here opens a connection.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from curtail.errors import AuthError

PINNED = re.compile(r"ct1\.([0-9a-f]{64})\.([0-9a-f]{8})\.([0-9a-f]{64})\.([0-9a-f]{8})")
PLAIN = re.compile(r"ct0\.([A-Za-z0-9]{1,64})\.([A-Za-z0-9]{1,128})")
AGAIN = "copy the whole token again from where it was created"


@dataclass(frozen=True, slots=True)
class Token:
    """A parsed token; `repr` does not show its secret."""

    id: str
    secret: str = field(repr=False)
    pin: str | None = None  # SHA-256 of the public key of the controller's authority, 64 hex digits

    def __str__(self) -> str:
        """The whole text, the secret included."""
        if self.pin is None:
            return f"ct0.{self.id}.{self.secret}"
        body = f"ct1.{self.pin}.{self.id}.{self.secret}"
        return f"{body}.{checksum(body)}"


def checksum(body: str) -> str:
    """Eight hex digits that detect typing errors in `body`; not a protection against forgery."""
    return hashlib.sha256(body.encode()).hexdigest()[:8]


def parse_token(text: str) -> Token:
    """Parse the token in `text`. The error message never repeats `text`.

    Raises: AuthError: it is not a token, was truncated, or has an invalid character.
    """
    text = text.strip()
    if plain := PLAIN.fullmatch(text):
        return Token(plain[1], plain[2])
    if not text.startswith("ct1."):
        raise AuthError("this is not a token: tokens begin with ct1.", AGAIN)
    found = PINNED.fullmatch(text)
    if found is None:
        whole = 4 + 64 + 1 + 8 + 1 + 64 + 1 + 8
        what = f"has {len(text)} characters instead of {whole}" if len(text) != whole else "has an invalid character"
        raise AuthError(f"the token {what}", AGAIN)
    if checksum(text.rpartition(".")[0]) != found[4]:
        raise AuthError("the token is mistyped: its checksum does not match", AGAIN)
    return Token(found[2], found[3], found[1])
