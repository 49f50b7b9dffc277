"""The controller's authority and certificate: made once, renewed in time, trusted by the pin and by nothing else."""

from __future__ import annotations

import ssl
import stat
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from controller.auth import authority
from controller.auth.authority import ensure, own_names
from controller.http.listener import renew
from curtail.errors import AuthError
from curtail.security.tls import context, pin_of
from curtail.system.disk import SystemDisk

DAY = 86_400.0
NOW = 1_800_000_000.0


def made(home, now=NOW, names=("train.example",)):
    return ensure(home, names, now, SystemDisk())


def shake_hands(identity, pinned, name):
    """A TLS handshake in memory. Raises: ssl.SSLError."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(identity.files.certificate, identity.files.key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    far = serving.wrap_bio(up, down, server_side=True)
    near = pinned.wrap_bio(down, up, server_hostname=name)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return near.version()


def test_the_first_start_makes_keys_that_only_their_owner_reads(tmp_path):
    identity = made(tmp_path)
    files = identity.files
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
    for key in (files.authority_key, files.key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert identity.pin == pin_of(files.authority.read_text())


def test_a_second_start_changes_nothing(tmp_path):
    before = made(tmp_path)
    bytes_before = {path.name: path.read_bytes() for path in before.files.folder.iterdir()}
    assert made(tmp_path, NOW + DAY) == before
    assert {path.name: path.read_bytes() for path in before.files.folder.iterdir()} == bytes_before


def test_the_certificate_is_for_serving_only_and_names_what_is_advertised(tmp_path):
    identity = made(tmp_path, names=("train.example", "192.0.2.7"))
    shown = x509.load_pem_x509_certificate(identity.files.certificate.read_bytes())
    usage = shown.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"train.example", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"192.0.2.7", "127.0.0.1", "::1"} <= {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    assert not shown.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_certificate_near_its_end_is_renewed_and_the_pin_stays(tmp_path):
    before = made(tmp_path)
    after = made(tmp_path, NOW + 61 * DAY)
    assert after.ends > before.ends and after.pin == before.pin and after.authority == before.authority


def test_an_authority_near_its_end_gets_a_new_certificate_of_the_same_key(tmp_path):
    before = made(tmp_path)
    after = made(tmp_path, NOW + 3300 * DAY)
    assert after.authority != before.authority and after.pin == before.pin


@pytest.mark.parametrize("spoil", ["certificate", "key"])
def test_a_damaged_certificate_or_key_is_made_anew(tmp_path, spoil):
    before = made(tmp_path)
    getattr(before.files, spoil).write_bytes(b"damaged")
    after = made(tmp_path)
    assert after.pin == before.pin and before.files.certificate.read_bytes().startswith(b"-----BEGIN")


def test_a_further_name_makes_a_new_certificate(tmp_path):
    made(tmp_path)
    identity = made(tmp_path, names=("train.example", "other.example"))
    shown = x509.load_pem_x509_certificate(identity.files.certificate.read_bytes())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "other.example" in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"damaged")])
def test_without_the_authoritys_key_it_stops_and_says_what_to_do(tmp_path, spoil):
    spoil(made(tmp_path).files.authority_key)
    with pytest.raises(AuthError, match=r"ca-key\.pem is missing or damaged.*restore it"):
        made(tmp_path)


def test_only_the_pinned_authority_and_the_right_name_are_trusted(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    ours, theirs = made(tmp_path / "ours", time.time()), made(tmp_path / "theirs", time.time())
    assert shake_hands(ours, context(ours.authority), "train.example") == "TLSv1.3"
    assert shake_hands(ours, context(ours.authority), "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"verify failed"):
        shake_hands(theirs, context(ours.authority), "train.example")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch"):
        shake_hands(ours, context(ours.authority), "elsewhere.example")


def test_a_renewed_certificate_is_loaded_without_a_restart(tmp_path):
    identity = made(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(identity.files.certificate, identity.files.key)
    assert renew(serving, identity.ends, lambda: made(tmp_path, NOW + DAY)) == identity.ends
    assert renew(serving, identity.ends, lambda: made(tmp_path, NOW + 61 * DAY)) > identity.ends


def test_names_that_cannot_be_in_a_certificate_are_left_out():
    assert own_names(["a.example", "b c", "x/y", "a.example"], "127.0.0.1") == ["a.example", "127.0.0.1"]
    assert authority.LOOPBACK == ("localhost", "127.0.0.1", "::1")
