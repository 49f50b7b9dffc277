"""As what the controller listens: nothing secret crosses a network in clear unless somebody insists."""

from __future__ import annotations

import ssl
import threading
import time

import pytest

from controller.auth.authority import ensure
from controller.http.listener import BANNER, choose, renewing
from curtail.errors import AuthError, UsageError
from curtail.system.disk import SystemDisk


def face(host, tls=None, insecure=False, open_status=False):
    return choose(host, tls, insecure, open_status)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_loopback_is_plain_with_an_open_status_unless_tls_is_asked_for(host):
    plain = face(host)
    assert not plain.tls and plain.open_status and not plain.insecure
    assert face(host, tls=True).tls


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "train.example", ""])
def test_beyond_loopback_it_is_tls_and_the_status_needs_a_token(host):
    for made in (face(host), face(host, tls=True)):
        assert made.tls and not made.open_status and not made.insecure
    assert face(host, open_status=True).open_status
    with pytest.raises(UsageError, match="unencrypted"):
        face(host, tls=False)
    for tls in (None, False):
        insisted = face(host, tls=tls, insecure=True)
        assert not insisted.tls and insisted.insecure and not insisted.open_status
    with pytest.raises(UsageError, match="do not go together"):
        face(host, tls=True, insecure=True)


def test_addresses_for_this_machine_for_others_and_for_the_announcement():
    names = ["train.example", "host", "192.0.2.7", "127.0.1.1"]
    everywhere = face("0.0.0.0")
    assert everywhere.url(1) == "https://127.0.0.1:1"
    assert everywhere.public(1, names) == "https://train.example:1"
    assert everywhere.addresses(names) == ["192.0.2.7"]
    assert everywhere.addresses([]) == ["127.0.0.1"]
    assert face("::").url(1) == "https://[::1]:1"
    assert face("127.0.0.1").public(1, ["train.example"]) == "http://127.0.0.1:1"
    assert face("127.0.0.1").addresses(names) == ["127.0.0.1"]
    assert "plain HTTP at http://192.0.2.1:1" in BANNER.format(url=face("192.0.2.1", insecure=True).url(1))


def test_a_failed_renewal_is_logged_and_tried_again(tmp_path, caplog):
    identity = ensure(tmp_path, [], time.time(), SystemDisk())
    context, tried, done = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), [], threading.Event()

    def look():
        tried.append(1)
        if len(tried) == 1:
            raise AuthError("the key is gone")
        done.set()
        return identity

    with renewing(context, identity, look, every_s=0.01):
        assert done.wait(10.0)
    assert "cannot be renewed: the key is gone" in caplog.text
