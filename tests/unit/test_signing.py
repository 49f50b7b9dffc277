"""Signed requests: any change breaks the signature, and clocks that differ are measured."""

from __future__ import annotations

import httpx
import pytest

from agent.client import Control
from curtail import signing, wire
from curtail.errors import AuthError
from curtail.signing import AgentKey, Signer

KEY, NOW = AgentKey(), 1_700_000_000.0


def sent(now=NOW):
    return signing.read_stamp(KEY.header("POST", "/v1/x", b"body", 3, now))


def test_a_signed_request_is_accepted_as_it_was_sent():
    stamp = sent()
    signing.check(stamp, KEY.public, "POST", "/v1/x", b"body", NOW + 299)
    assert stamp.fence == 3 and stamp.time == int(NOW)


@pytest.mark.parametrize(
    "changed",
    [("PUT", "/v1/x", b"body"), ("POST", "/v1/y", b"body"), ("POST", "/v1/x", b"bodies"), ("POST", "/v1/x", b"")],
)
def test_a_change_of_method_path_or_body_breaks_the_signature(changed):
    with pytest.raises(AuthError, match="not signed with the key"):
        signing.check(sent(), KEY.public, *changed, NOW)


def test_another_key_epoch_time_or_nonce_breaks_the_signature():
    stamp = sent()
    with pytest.raises(AuthError):
        signing.check(stamp, AgentKey().public, "POST", "/v1/x", b"body", NOW)
    for name, value in (("fence", 4), ("time", stamp.time + 1), ("nonce", "0" * 32), ("signature", b"0" * 64)):
        values = {field: getattr(stamp, field) for field in stamp.__slots__} | {name: value}
        with pytest.raises(AuthError):
            signing.check(signing.Stamp(**values), KEY.public, "POST", "/v1/x", b"body", NOW)


@pytest.mark.parametrize(("off", "words"), [(-301, "301 s behind"), (400, "400 s ahead of")])
def test_a_skew_of_more_than_300_s_is_refused_with_the_measured_skew(off, words):
    with pytest.raises(AuthError, match=words):
        signing.check(sent(NOW + off), KEY.public, "POST", "/v1/x", b"body", NOW)


@pytest.mark.parametrize("header", [None, "", "v1", "v1;time=1;nonce=0;fence=1;sig=x", "v1;time=-1;nonce=;fence=;sig="])
def test_a_header_of_another_form_is_refused(header):
    with pytest.raises(AuthError, match="must be signed"):
        signing.read_stamp(header)


def test_a_key_survives_its_file_and_other_files_are_refused():
    assert AgentKey(KEY.pem).public == KEY.public
    for wrong in (b"", b"no key", KEY.pem[:60]):
        with pytest.raises(AuthError, match="no key of an agent"):
            AgentKey(wrong)


def test_a_site_with_a_wrong_clock_signs_with_the_controllers_time():
    """It learns the time from the Date header of any answer."""
    seen = []

    def handler(request):
        seen.append(request)
        answer = wire.Receipt("r", 1, "a", 1, False) if request.url.path == wire.COMMIT else wire.Ack(True)
        return httpx.Response(200, content=wire.encode(answer), headers={"date": "Tue, 14 Nov 2023 22:13:20 GMT"})

    http = httpx.Client(transport=httpx.MockTransport(handler), base_url="http://127.0.0.1:1")
    control = Control(http, "secret", signer=Signer(KEY, lambda: NOW - 86_400.0, 3))
    control.leave(wire.LeaveRequest("a", "a", 3, "test"))
    assert signing.HEADER not in seen[0].headers
    control.commit_blob("0" * 64)
    stamp = signing.read_stamp(seen[1].headers[signing.HEADER])
    signing.check(stamp, KEY.public, "POST", seen[1].url.path, b"", NOW)
