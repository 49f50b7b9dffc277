"""Connections to a controller: which addresses may be used, and who must answer there.

Over TLS the controller is known by the public key of its own authority, whose
hash every token carries (its pin). The authority's certificate is fetched without
trust, held against the pin, and only then is anything secret sent, over a second
connection that trusts this authority and nothing else. Plain HTTP is for loopback,
or for who insists.
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
"""Longest wait for a connection; a controller that needs more cannot be reached."""

REPLY_S = 10.0
"""Longest wait for the answer to a control message."""

MOST_CA = 64 * 1024
"""Bytes of the largest answer to the request for the authority's certificate."""


def is_loopback(host: str) -> bool:
    """True if `host` can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_url(url: str, insecure: bool = False) -> httpx.URL:
    """`url` as the base address of a controller.

    Args: insecure: plain HTTP to another machine is wanted.
    Raises: UsageError: no URL, or plain HTTP to another machine.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is no URL: {error}", "write for example https://HOST:8765") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is not the address of a controller", "write for example https://HOST:8765")
    if parsed.scheme == "http" and not insecure and not is_loopback(parsed.host):
        raise UsageError(
            f"plain HTTP to {parsed.host} would send the credential in clear",
            "use https: a controller that listens there speaks it, unless it was started with --insecure",
        )
    return parsed.copy_with(path="/", query=None, fragment=None)


def pin_of(pem: str) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo) of the one certificate in `pem`, 64 hex digits.

    Raises: AuthError: that is no certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        (certificate,) = x509.load_pem_x509_certificates(pem.encode())
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError:
        raise AuthError("whoever answers shows no certificate of an authority", "check the address") from None
    return hashlib.sha256(key).hexdigest()


def fetch_authority(url: str, pin: str) -> str:
    """The certificate of the controller's authority, in PEM, if it is the one that `pin` names.

    Nothing secret is sent: the connection proves nothing.

    Raises: Unreachable. AuthError: another controller answers, or somebody in between.
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
                    raise WireError(f"{url} answers with more than a certificate", "is it a curtail controller?")
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        remedy = other_scheme(error, url) or "check the address and that it runs"
        raise Unreachable(f"no controller answers at {url} ({why})", remedy) from error
    try:
        pem = wire.decode(wire.CaCerts, body).pem
    except WireError:
        raise WireError(f"{url} does not answer like a curtail controller", "check the address") from None
    found = pin_of(pem)
    if found != pin:
        raise AuthError(
            f"{url} is not the controller that this token is for: the token names the key {pin[:16]}, the one there has"
            f" {found[:16]}",
            "if the controller was made anew, get a new token from it (HOME/join-token); else somebody is in between",
        )
    return pem


def open_http(
    url: str, authority: str | None = None, *, server_name: str | None = None, insecure: bool = False
) -> httpx.Client:
    """The connection pool to the controller at `url`. Over https, only the holder of a certificate that `authority`
    signed for this name can answer.

    Args:
        authority: certificate in PEM; needed for https.
        server_name: the name that the certificate must hold, where it is not the host of `url`.
    Raises: UsageError: see `check_url`. AuthError: https without an authority.
    """
    import httpx

    base = check_url(url, insecure)
    if base.scheme == "https" and authority is None:
        raise AuthError(
            f"nothing says which controller must answer at {url}", "give a token that begins with ct1: it names the key"
        )

    def named(request: httpx.Request) -> None:
        request.extensions["sni_hostname"] = server_name

    return httpx.Client(
        base_url=base,
        timeout=httpx.Timeout(REPLY_S, connect=CONNECT_S),
        # A proxy from the environment must not see what stays on this machine.
        trust_env=not is_loopback(base.host),
        headers={"User-Agent": f"curtail/{__version__}"},
        verify=context(authority) if authority is not None else True,
        event_hooks={"request": [named]} if server_name else {},
    )


def open_with_token(
    url: str, token: Token | None, server_name: str | None = None, insecure: bool = False
) -> httpx.Client:
    """A connection for a viewer or an operator, whose token goes along with each request; None: plain, without one.

    Args: insecure: plain HTTP to another address than loopback is wanted.
    Raises: UsageError, AuthError, Unreachable: nobody answers who may see the token; it was not sent.
    """
    base = check_url(url, insecure)
    if token is None:
        if base.scheme == "https":
            raise AuthError(f"{url} needs a token", "give one with --token-file or in CURTAIL_TOKEN")
        return open_http(url, insecure=insecure)
    authority = None
    if base.scheme == "https":
        if token.pin is None:
            raise AuthError("this token names no controller's key", "make a new one with `curtail token create`")
        authority = fetch_authority(url, token.pin)
    http = open_http(url, authority, server_name=server_name, insecure=insecure)
    http.headers["Authorization"] = f"Bearer {token}"
    return http


def context(authority: str) -> ssl.SSLContext:
    """What a TLS connection to the controller is checked with: this authority and no other. Raises: AuthError."""
    try:
        made = ssl.create_default_context(cadata=authority)
    except ssl.SSLError:
        raise AuthError("the kept certificate of the controller's authority is damaged", "join anew") from None
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def mistrust(error: BaseException, url: str) -> str | None:
    """Why the TLS connection was not trusted, or None if that was not the reason of `error`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message or str(cause)
            return f"whoever answers at {url} cannot prove to be the controller ({why.rstrip('.')})"
        cause = cause.__cause__ or cause.__context__
    return None


def other_scheme(error: BaseException, url: str) -> str | None:
    """What to try where one side of a broken connection may speak TLS and the other plain HTTP; None: not by `error`.

    A controller that awaits TLS cuts plain HTTP off without an answer; one that speaks plain HTTP answers in it.
    """
    import httpx

    if not url.startswith("https:"):
        cut = isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError))
        return "if the controller speaks TLS, write https:// instead of http://" if cut else None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLCertVerificationError):
            return "if the controller speaks plain HTTP, write http:// instead of https://"
        cause = cause.__cause__ or cause.__context__
    return None


MISTRUST_REMEDY = (
    "if only the address is another one, give --server-name with a name the controller knows, or start it with"
    " --advertise; if it was made anew, join with its new token"
)
