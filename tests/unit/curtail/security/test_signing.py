"""Signed requests: any change breaks the signature, and clocks that differ are measured."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.http.client import Control
from controller.auth.nonces import KEPT_S, MOST_LIVES, WINDOW, Replays
from curtail import wire
from curtail.errors import AuthError
from curtail.security import signing
from curtail.security.signing import AgentKey, Signer

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
        with pytest.raises(AuthError, match="does not hold an agent's key"):
            AgentKey(wrong)


def test_a_site_with_a_wrong_clock_signs_with_the_controllers_time():
    """It learns the time from the Date header of any answer."""
    seen = []

    def handler(request):
        seen.append(request)
        answer = wire.BlobStatus("0" * 64, 1, 1, (), True) if request.url.path == wire.BLOBS else wire.Ack(True)
        return httpx.Response(200, content=wire.encode(answer), headers={"date": "Tue, 14 Nov 2023 22:13:20 GMT"})

    http = httpx.Client(transport=httpx.MockTransport(handler), base_url="http://127.0.0.1:1")
    control = Control(http, "secret", signer=Signer(KEY, lambda: NOW - 86_400.0, 3))
    control.offer_blob(wire.BlobOffer("0" * 64, 1))
    assert signing.HEADER not in seen[0].headers
    control.commit_blob("0" * 64, 1)
    stamp = signing.read_stamp(seen[1].headers[signing.HEADER])
    signing.check(stamp, KEY.public, "POST", seen[1].url.path, b"", NOW)


@pytest.mark.parametrize(("off_s", "sent"), [(0.0, 1), (30.0, 1), (3600.0, 2), (-3600.0, 2)])
def test_a_request_that_is_refused_for_a_clock_that_jumped_is_signed_once_more(off_s, sent):
    """A job must not end, nor a contribution be lost, because somebody set the clock."""
    seen = []

    def handler(request):
        seen.append(request)
        problem = wire.encode(wire.Problem("AuthError", "no", ""))
        return httpx.Response(401, content=problem, headers={"date": "Tue, 14 Nov 2023 22:13:20 GMT"})

    http = httpx.Client(transport=httpx.MockTransport(handler), base_url="http://127.0.0.1:1")
    control = Control(http, "secret", signer=Signer(KEY, lambda: NOW + off_s, 3))
    for call in (
        lambda: control.leave(wire.LeaveRequest("a", "a", 3, "test")),
        lambda: control.commit_blob("0" * 64, 1),
    ):
        seen.clear()
        control.signer.ahead_s = 0.0
        with pytest.raises(AuthError):
            call()
        assert len(seen) == sent
        if sent == 2:
            signing.check(
                signing.read_stamp(seen[1].headers[signing.HEADER]), KEY.public, "POST", seen[1].url.path,
                seen[1].content, NOW,
            )  # fmt: skip


# -- what came before -----------------------------------------------------------------


def stamp(life, count, time=NOW):
    return signing.Stamp(int(time), f"{life:016x}{count:016x}", 1, b"")


def taken(replays, *arguments):
    try:
        replays.take(*arguments)
    except AuthError:
        return False
    return True


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 200)), max_size=300))
def test_nothing_counts_twice_and_what_is_near_the_newest_counts_once(requests):
    replays, came = Replays(), {}
    for life, count in requests:
        before = came.setdefault(life, [])
        fresh = count not in before and (not before or count > max(before) - WINDOW)
        assert taken(replays, "key", stamp(life, count), NOW) == fresh
        if fresh:
            before.append(count)


def test_a_signer_numbers_what_it_signs_and_no_two_signers_share_a_life():
    one, other = Signer(KEY, lambda: NOW), Signer(KEY, lambda: NOW)
    stamps = [signing.read_stamp(s.header("POST", "/v1/x", b"")) for s in (one, one, other)]
    lives = [s.nonce[:16] for s in stamps]
    assert lives[0] == lives[1] != lives[2] and [int(s.nonce[16:], 16) for s in stamps] == [1, 2, 1]


def test_what_is_remembered_is_bounded_and_what_is_forgotten_is_too_old_to_count():
    replays = Replays()
    for life in range(3 * MOST_LIVES):
        assert taken(replays, "busy", stamp(life, 1), NOW)
    assert taken(replays, "other", stamp(0, 1), NOW), "another key's stamps are its own"
    assert replays.count() == MOST_LIVES + 1
    assert not taken(replays, "other", stamp(0, 1), NOW + KEPT_S)
    assert taken(replays, "third", stamp(0, 1), NOW + 2 * KEPT_S + 1) and replays.count() == 1
    assert KEPT_S > 2 * signing.SKEW_S, "a stamp may be that far ahead, and then that far behind"
