"""The controller's certificate authority (CA) and its TLS server certificate.

The CA key (P-256) is generated at the first start and never leaves the folder. The
hash of its public key is the pin in every token. The CA signs only TLS server
certificates, valid for 90 days and renewed long before they expire, also while the
controller runs. A renewed CA certificate has the same key, so tokens and agents
stay valid. Only their owner can read the key files.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from curtail.errors import AuthError
from curtail.security.tls import is_loopback, pin_of
from curtail.system.disk import Disk, disk_error
from curtail.system.home_files import TLS

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 90
RENEW_DAYS = 30
"""A certificate is renewed this many days before it expires."""

BACKDATE = timedelta(days=1)
"""How far the start of validity is backdated, because the clocks of the sites may be behind."""

NAME = re.compile(r"[A-Za-z0-9._:-]{1,253}")
"""A host name or an address, IPv6 included."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Files:
    """The folder `HOME/tls`."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def authority_key(self) -> Path:
        return self.folder / "ca-key.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / "controller.pem"

    @property
    def key(self) -> Path:
        return self.folder / "controller-key.pem"


@dataclass(frozen=True, slots=True)
class Identity:
    """The controller's TLS identity."""

    files: Files
    authority: str  # the CA certificate in PEM
    pin: str  # SHA-256 of the CA's public key, 64 hex digits
    names: tuple[str, ...]  # names in the server certificate
    ends: float  # when the server certificate expires, Unix time


def ensure(home: Path, names: Iterable[str], now: float, disk: Disk) -> Identity:
    """The TLS identity of the controller in `home`; created, completed or renewed as needed.

    Args: names: names and addresses at which it is reached, besides loopback. now: Unix time.
    Raises: AuthError: the CA key is missing or damaged. DiskError.
    """
    files = Files(home / TLS)
    moment = datetime.fromtimestamp(now, UTC)
    disk.folder("TLS_FOLDER", files.folder, 0o700)
    try:
        os.chmod(files.folder, 0o700)
    except OSError as error:
        raise disk_error("use the folder", files.folder, error) from error
    key, authority = _authority(files, moment, disk)
    wanted = tuple(dict.fromkeys([*LOOPBACK, *names]))
    certificate = _kept(files, authority, wanted, moment)
    if certificate is None:
        certificate = _issue(files, key, authority, wanted, moment, disk)
    pem = _pem(authority).decode()
    return Identity(files, pem, pin_of(pem), wanted, certificate.not_valid_after_utc.timestamp())


def own_names(advertised: Iterable[str], host: str) -> list[str]:
    """Names and addresses of this machine: the advertised ones, the one it listens on, and its own host names."""
    found = [*advertised]
    if host not in ("", "0.0.0.0", "::"):
        found.append(host)
    if is_loopback(host):
        return [name for name in dict.fromkeys(found) if _possible(name)]
    name = socket.gethostname()
    found += [name, socket.getfqdn()]
    with contextlib.suppress(OSError):  # the controller starts even if a name does not resolve
        found += [str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(name, None)]
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((far, 9))  # sends nothing: the system only chooses the source address
            found.append(str(asking.getsockname()[0]))
    return [name for name in dict.fromkeys(found) if _possible(name)]


def _possible(name: str) -> bool:
    return NAME.fullmatch(name) is not None


# -- the authority -------------------------------------------------------------


def _authority(files: Files, now: datetime, disk: Disk) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    """The CA's key and certificate; a new certificate with the same key if the old one expires soon."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    lost = AuthError(
        f"{files.authority_key} is missing or damaged, but agents trust its certificate",
        f"restore it from a backup; or delete {files.folder} and give every agent and viewer a new token",
    )
    if files.authority_key.exists():
        try:
            key = load_pem_private_key(files.authority_key.read_bytes(), None)
        except (ValueError, TypeError):
            raise lost from None
        except OSError as error:
            raise disk_error("read", files.authority_key, error) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise lost
        os.chmod(files.authority_key, 0o600)
    elif files.authority.exists():
        raise lost
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        disk.replace("CA_KEY", files.authority_key, _private(key), 0o600)
    with contextlib.suppress(OSError, ValueError):
        old = x509.load_pem_x509_certificate(files.authority.read_bytes())
        if old.public_key() == key.public_key() and old.not_valid_after_utc - now > timedelta(days=365):
            return key, old
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "curtail authority")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = _sign(made, key)
    disk.replace("CA", files.authority, _pem(certificate), 0o644)
    return key, certificate


# -- the server certificate -------------------------------------------------------


def _kept(files: Files, authority: x509.Certificate, names: tuple[str, ...], now: datetime) -> x509.Certificate | None:
    """The certificate on disk, if it is of this CA and key, has all `names` and does not expire soon; else None."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        kept = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        key = load_pem_private_key(files.key.read_bytes(), None)
        kept.verify_directly_issued_by(authority)
        held = kept.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    fits = kept.public_key() == key.public_key() and all(name in held for name in _alternatives(names))
    return kept if fits and kept.not_valid_after_utc - now > timedelta(days=RENEW_DAYS) else None


def _issue(
    files: Files,
    authority_key: EllipticCurvePrivateKey,
    authority: x509.Certificate,
    names: tuple[str, ...],
    now: datetime,
    disk: Disk,
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "curtail controller")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(min(now + timedelta(days=CERTIFICATE_DAYS), authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    certificate = _sign(made, authority_key)
    # The two files are not replaced atomically; a pair that does not match is replaced at the next start.
    disk.replace("TLS_KEY", files.key, _private(key), 0o600)
    disk.replace("TLS", files.certificate, _pem(certificate), 0o644)
    return certificate


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    from cryptography import x509

    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(made: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives import hashes

    return made.sign(key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
