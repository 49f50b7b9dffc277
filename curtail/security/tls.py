"""HTTP connections to a controller: allowed URLs, and TLS with a pinned certificate authority.

Every token carries the SHA-256 of the public key of the controller's own certificate
authority (the pin). The authority's certificate is fetched over an unverified
connection and compared with the pin. Only then are secrets sent, over a second
connection that trusts this authority alone. Plain HTTP is for loopback, or for
`--insecure`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from typing import TYPE_CHECKING

from curtail import __version__, wire
from curtail.errors import AuthError, Unreachable, UsageError, WireError
from curtail.security.token import Token

if TYPE_CHECKING:
    import httpx

CONNECT_S = 3.0
"""Connect timeout, in seconds; a controller that takes longer counts as unreachable."""

REPLY_S = 10.0
"""Read timeout for the response to a control message, in seconds."""

MOST_CA = 64 * 1024
"""Largest accepted response to the request for the authority's certificate, in bytes."""


def is_loopback(host: str) -> bool:
    """True if `host` is localhost or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_url(url: str, insecure: bool = False) -> httpx.URL:
    """`url` as the base address of a controller.

    Args: insecure: allow plain HTTP to another machine.
    Raises: UsageError: not a URL, or plain HTTP to another machine.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is not a valid URL: {error}", "write for example https://HOST:8765") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is not the address of a controller", "write for example https://HOST:8765")
    if parsed.scheme == "http" and not insecure and not is_loopback(parsed.host):
        raise UsageError(
            f"plain HTTP to {parsed.host} would send the credential unencrypted",
            "use https://; a controller serves HTTPS on the network unless it was started with --insecure",
        )
    return parsed.copy_with(path="/", query=None, fragment=None)


def pin_of(pem: str) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo) of the one certificate in `pem`, 64 hex digits.

    Raises: AuthError: `pem` does not hold exactly one certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        (certificate,) = x509.load_pem_x509_certificates(pem.encode())
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError:
        raise AuthError("the server sent no valid CA certificate", "check the address") from None
    return hashlib.sha256(key).hexdigest()


def fetch_authority(url: str, pin: str) -> str:
    """Fetch the certificate of the controller's authority, in PEM, and compare it with `pin`.

    The connection is not verified, so nothing secret is sent over it.

    Raises: Unreachable. AuthError: another controller answers, or a man in the middle.
    """
    import httpx

    base = check_url(url)
    try:
        with (
            httpx.Client(base_url=base, verify=False, trust_env=not is_loopback(base.host), timeout=REPLY_S) as http,
            http.stream("GET", wire.CACERTS) as response,
        ):
            body = b""
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MOST_CA:
                    raise WireError(f"{url} sent more than a certificate", "check that it is a curtail controller")
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        remedy = other_scheme(error, url) or "check the address, and that the controller is running"
        raise Unreachable(f"no controller answers at {url} ({why})", remedy) from error
    try:
        pem = wire.decode(wire.CaCerts, body).pem
    except WireError:
        raise WireError(f"{url} does not answer like a curtail controller", "check the address") from None
    found = pin_of(pem)
    if found != pin:
        raise AuthError(
            f"{url} is not the controller that this token is for: the token pins the key {pin[:16]}, the controller"
            f" has {found[:16]}",
            "if the controller was set up again, get its new token (HOME/join-token); otherwise suspect a man in the"
            " middle",
        )
    return pem


def open_http(
    url: str, authority: str | None = None, *, server_name: str | None = None, insecure: bool = False
) -> httpx.Client:
    """The connection pool to the controller at `url`; over https it trusts only certificates signed by `authority`.

    Args:
        authority: certificate in PEM; required for https.
        server_name: the name that the server's certificate must hold, if it is not the host of `url`.
    Raises: UsageError: see `check_url`. AuthError: https without an authority.
    """
    import httpx

    base = check_url(url, insecure)
    if base.scheme == "https" and authority is None:
        raise AuthError(
            f"there is no key to verify the controller at {url} with",
            "give a token that begins with ct1: it pins the controller's key",
        )

    def named(request: httpx.Request) -> None:
        request.extensions["sni_hostname"] = server_name

    return httpx.Client(
        base_url=base,
        timeout=httpx.Timeout(REPLY_S, connect=CONNECT_S),
        # Loopback traffic must not go through a proxy from the environment.
        trust_env=not is_loopback(base.host),
        headers={"User-Agent": f"curtail/{__version__}"},
        verify=context(authority) if authority is not None else True,
        event_hooks={"request": [named]} if server_name else {},
    )


def open_with_token(
    url: str, token: Token | None, server_name: str | None = None, insecure: bool = False
) -> httpx.Client:
    """A connection for a viewer or an operator that sends `token` with each request; None: plain HTTP, no token.

    Args: insecure: allow plain HTTP to an address other than loopback.
    Raises: UsageError, AuthError, Unreachable: the controller could not be verified; the token was not sent.
    """
    base = check_url(url, insecure)
    if token is None:
        if base.scheme == "https":
            raise AuthError(f"{url} needs a token", "give one with --token-file or in CURTAIL_TOKEN")
        return open_http(url, insecure=insecure)
    authority = None
    if base.scheme == "https":
        if token.pin is None:
            raise AuthError("this token does not pin a controller's key", "make a new one with `curtail token create`")
        authority = fetch_authority(url, token.pin)
    http = open_http(url, authority, server_name=server_name, insecure=insecure)
    http.headers["Authorization"] = f"Bearer {token}"
    return http


def context(authority: str) -> ssl.SSLContext:
    """The TLS context for a connection to the controller: it trusts this authority only. Raises: AuthError."""
    try:
        made = ssl.create_default_context(cadata=authority)
    except ssl.SSLError:
        raise AuthError("the stored certificate of the controller's authority is damaged", "join again") from None
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def mistrust(error: BaseException, url: str) -> str | None:
    """Why certificate verification failed, or None if `error` has another cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message or str(cause)
            return f"the server at {url} could not be verified as the controller ({why.rstrip('.')})"
        cause = cause.__cause__ or cause.__context__
    return None


def other_scheme(error: BaseException, url: str) -> str | None:
    """The remedy if `error` suggests that one side uses TLS and the other plain HTTP; None if it does not.

    A TLS controller closes a plain HTTP connection without a response; a plain HTTP one answers in plain HTTP.
    """
    import httpx

    if not url.startswith("https:"):
        cut = isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError))
        return "if the controller uses TLS, write https:// instead of http://" if cut else None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLCertVerificationError):
            return "if the controller uses plain HTTP, write http:// instead of https://"
        cause = cause.__cause__ or cause.__context__
    return None


MISTRUST_REMEDY = (
    "if only the controller's address changed, pass --server-name with a name from its certificate, or start the"
    " controller with --advertise; if the controller was set up again, join with its new token"
)
