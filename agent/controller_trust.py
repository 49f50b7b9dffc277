"""Pins the controller's certificate authority for an agent and its job.

The agent fetches the CA certificate once, checks it against the pin in the join
token and stores it in its folder (`ca.pem`). Later connections need no token.
A token with another pin means another controller. Then the certificate is
replaced and the stored credential is deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.home import Home
from agent.http.bandwidth import BandwidthLimit
from agent.http.client import Control
from curtail.errors import AuthError
from curtail.security.signing import AgentKey, Signer
from curtail.security.tls import check_url, fetch_authority, open_http, pin_of
from curtail.security.token import Token
from curtail.system.disk import Disk


@dataclass(frozen=True, slots=True)
class ControllerTrust:
    """What an agent knows to authenticate its controller.

    Args:
        token: None if the agent joined before.
        server_name: the name expected in the controller's certificate; None means the host of its address.
        insecure: plain HTTP to another machine is allowed.
    """

    home: Home
    disk: Disk
    token: Token | None = None
    server_name: str | None = None
    insecure: bool = False


def open_control(url: str, trust: ControllerTrust) -> Control:
    """The agent's connection.

    Raises: UsageError. AuthError: another controller answers at `url`. Unreachable, DiskError.
    """
    authority = known_authority(url, trust)
    return Control(open_http(url, authority, server_name=trust.server_name, insecure=trust.insecure))


def open_jobs_control(
    url: str,
    credential_file: Path,
    fence: int,
    wall: Callable[[], float],
    link: BandwidthLimit | None = None,
    server_name: str | None = None,
    insecure: bool = False,
) -> Control:
    """A job's connection, with the credential, key and CA certificate from its agent's folder.

    Raises: UsageError. AuthError: the credential, the key or the CA certificate is missing.
    """
    home = Home(credential_file.parent)

    def credential() -> str | None:
        return home.credential()

    if credential() is None:
        raise AuthError(f"cannot read the credential {credential_file}", "the agent writes it when it joins")
    try:
        signer = Signer(AgentKey(home.key_file.read_bytes()), wall, fence)
    except OSError as error:
        raise AuthError(f"cannot read the agent's key {home.key_file}: {error.strerror}") from error
    http = open_http(url, _kept(home), server_name=server_name, insecure=insecure)
    return Control(http, credential(), link, signer, credential)


def known_authority(url: str, trust: ControllerTrust) -> str | None:
    """The CA certificate of the controller at `url`; None for plain HTTP, which needs none.

    Raises: UsageError, Unreachable, DiskError. AuthError: there is no pin to check it against, or it does not match.
    """
    if check_url(url, trust.insecure).scheme == "http":
        return None
    kept, token = _kept(trust.home), trust.token
    if kept is not None and (token is None or token.pin is None or pin_of(kept) == token.pin):
        return kept
    if token is None or token.pin is None:
        raise AuthError(
            f"the identity of the controller at {url} cannot be checked without a token",
            "give a token that begins with ct1: set CURTAIL_TOKEN or use --token-file",
        )
    authority = fetch_authority(url, token.pin)
    if kept is not None:
        trust.disk.remove("CREDENTIAL", trust.home.credential_file)  # the previous controller issued it
    trust.disk.replace("CA", trust.home.authority_file, authority.encode(), 0o600)
    return authority


def _kept(home: Home) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return home.authority_file.read_text(encoding="ascii")
    return None
