"""What somebody hostile would try, over HTTP: each is refused, changes nothing and tells no secret.

The network's part (another authority, somebody in between) is in test_connect.py.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import logging

import httpx
import pytest
from asgi import AsgiTransport

from controller.auth import tokens
from controller.auth.credentials import LIFE_S
from controller.http.app import ServerIdentity, create_app
from curtail import wire
from curtail.security.signing import HEADER, SKEW_S, AgentKey, Signer
from curtail.security.token import parse_token
from curtail.wire import NodeRemove, RenewRequest, TokenRequest, TokenRevoke

INFO = wire.RunInfo("run", "n", 1, "p", {}, "m", "t", 8, 100, 4, 4, "{}", "int8", False, 20, 600.0)
SHA = "0" * 64

ROLES = {
    ("POST", wire.JOIN): "a token",
    ("POST", wire.CREDENTIAL): "a key",
    ("GET", wire.CACERTS): "nobody",
    ("GET", wire.HEALTH): "nobody",
    ("POST", wire.HEARTBEAT): "agent",
    ("POST", wire.LEAVE): "agent",
    ("GET", wire.RUN): "agent",
    ("POST", wire.CHECKOUT): "agent",
    ("POST", wire.PROGRESS): "agent",
    ("POST", wire.COMMIT): "agent",
    ("POST", wire.BLOBS): "agent",
    ("PUT", wire.PART): "agent",
    ("POST", wire.BLOB_COMMIT): "agent",
    ("GET", wire.BLOB): "agent",
    ("GET", wire.STATUS): "viewer",
    ("GET", wire.TOKENS): "operator",
    ("POST", wire.TOKENS): "operator",
    ("POST", wire.TOKEN_REVOKE): "operator",
    ("GET", wire.NODES): "operator",
    ("POST", wire.NODE_REMOVE): "operator",
    ("POST", wire.OVERRIDE): "operator",
    ("GET", wire.PROVISION): "viewer",
    ("POST", wire.SITE_ORDER): "operator",
}
"""Who may ask what; a test holds it against the application's routes."""

SIGNED = {wire.HEARTBEAT, wire.LEAVE, wire.CHECKOUT, wire.PROGRESS, wire.COMMIT, wire.BLOB_COMMIT}
"""What takes the machine's key beside its credential: all that changes what the run does or books."""

GUARDED = sorted(way for way, role in ROLES.items() if role in ("agent", "viewer", "operator"))


class Site:
    """One machine of a site, with its key, over HTTP."""

    def __init__(self, net, name, token, agent=None):
        self.net, self.name, self.key = net, name, AgentKey()
        self.agent = agent or f"agent-{name}"
        self.joined = wire.JoinRequest(
            wire.PROTOCOL, self.agent, name, "A", f"host-{name}", 1, token, key=self.key.public
        )
        reply = self.post(wire.JOIN, self.joined, signed=True, credential=None)
        self.reply = reply
        self.credential = wire.decode(wire.JoinReply, reply.content).credential if reply.is_success else None

    def headers(self, method, path, body, fence=1, credential="own"):
        found = {HEADER: self.key.header(method, path, body, fence, self.net.world.clock.wall())}
        shown = self.credential if credential == "own" else credential
        return found | ({"authorization": f"Bearer {shown}"} if shown else {})

    def post(self, path, message, signed=True, credential="own", **headers):
        body = wire.encode(message)
        made = self.headers("POST", path, body, credential=credential)
        if not signed:
            made.pop(HEADER)
        return self.net.ask("POST", path, content=body, headers=made | headers)

    def upload(self, data):
        sha = hashlib.sha256(data).hexdigest()
        if not (offered := self.post(wire.BLOBS, wire.BlobOffer(sha, len(data)))).is_success:
            return offered
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        headers = {"authorization": f"Bearer {self.credential}", "content-digest": f"sha-256=:{digest}:"}
        path = wire.PART.format(sha256=sha, number=0)
        assert self.net.ask("PUT", path, content=data, headers=headers).is_success
        path = wire.BLOB_COMMIT.format(sha256=sha)
        return self.net.ask("POST", path, headers=self.headers("POST", path, b""))


class Net:
    """The application, as anybody on the network sees it; remembers all that it answered."""

    def __init__(self, world):
        self.world, self.answers = world, []
        app = create_app(world.service, world.uploads, INFO, lambda: None, ServerIdentity("PEM", "ab" * 32))
        self.routes = {(m, r.path) for r in app.routes for m in getattr(r, "methods", ()) if m != "HEAD"}
        self._http = httpx.Client(transport=AsgiTransport(app), base_url="http://127.0.0.1")

    def ask(self, method, path, **options):
        reply = self._http.request(method, path, **options)
        self.answers.append(reply)
        return reply

    def show(self, shown, method, path, message=None):
        content = wire.encode(message) if message is not None else b""
        headers = {"authorization": f"Bearer {shown}", "content-type": "application/json"}
        return self.ask(method, path, content=content, headers=headers)

    def token(self, role="agent", **more):
        values = {"role": role, "site": "", "region": "", "uses": None, "expires_s": None, "note": "n"} | more
        now = self.world.clock.wall()
        return self.world.store.call(lambda tx: tokens.create(tx, TokenRequest(**values), "ab" * 32, now)).token

    def close(self):
        self._http.close()


@pytest.fixture
def net(world):
    made = Net(world)
    yield made
    made.close()


@pytest.fixture
def pair(net):
    """Two sites of different owners."""
    return Site(net, "a", net.token()), Site(net, "b", net.token())


def address(way):
    method, path = way
    return method, path.format(sha256=SHA, number=0)


# -- who may ask what ---------------------------------------------------------------


def test_every_path_has_a_role(net):
    ours = {way for way in net.routes if way[1] in {path for _, path in ROLES} or way[1].startswith(wire.PREFIX)}
    assert ours == set(ROLES)


def test_nothing_is_to_be_had_without_a_credential_or_with_a_wrong_one(net, pair):
    token = parse_token(net.token("operator"))
    wrong = ("x", "0" * 64, str(dataclasses.replace(token, secret="0" * 64)), str(token)[:-1], f"ct0.{token.id}.guess")
    for method, path in map(address, GUARDED):
        assert net.ask(method, path).status_code == 401
        assert net.ask(method, path, headers={"authorization": f"Basic {token}"}).status_code == 401
        for shown in wrong:
            assert net.show(shown, method, path).status_code == 401, (path, shown)


def test_no_role_does_what_another_may(net, pair):
    shown = {
        "agent": pair[0].credential,
        "viewer": net.token("viewer"),
        "operator": net.token("operator"),
        "a join token": net.token("agent"),
    }
    for way in GUARDED:
        method, path = address(way)
        allowed = {"agent": {"agent"}, "viewer": {"viewer", "operator"}, "operator": {"operator"}}[ROLES[way]]
        for role, text in shown.items():
            status = net.show(text, method, path).status_code
            assert (status != 403) == (role in allowed), f"{role} at {path}: {status}"
            unsigned = role in allowed and way[1] in SIGNED
            assert (status == 401) == unsigned, f"{role} at {path}: {status}"


def test_expired_and_revoked_tokens_of_viewers_and_operators_show_nothing(net, world):
    expired, revoked = net.token("viewer", expires_s=10.0), net.token("operator")
    assert net.show(expired, "GET", wire.STATUS).status_code == 200
    assert net.show(revoked, "POST", wire.TOKEN_REVOKE, TokenRevoke(parse_token(revoked).id)).status_code == 200
    world.clock.t += 11.0
    assert net.show(expired, "GET", wire.STATUS).status_code == 401
    assert net.show(revoked, "GET", wire.TOKENS).status_code == 401


def test_an_expired_credential_is_refused_and_the_key_gets_a_new_one(net, pair, world):
    a, _ = pair
    world.clock.t += LIFE_S
    beat = wire.Heartbeat(a.agent, "a", 1, "IDLE", "paused", None, None, "")
    assert a.post(wire.HEARTBEAT, beat).status_code == 401
    renewed = a.post(wire.CREDENTIAL, RenewRequest(a.agent, "a"), signed=True, credential=None)
    a.credential = wire.decode(wire.JoinReply, renewed.content).credential
    assert a.post(wire.HEARTBEAT, beat).status_code == 200


# -- joining -------------------------------------------------------------------------


def test_a_join_that_was_seen_cannot_be_sent_again(net):
    token, key = net.token(), AgentKey()
    join = wire.JoinRequest(wire.PROTOCOL, "agent", "a", "A", "host", 1, token, key=key.public)
    body = wire.encode(join)
    headers = {HEADER: key.header("POST", wire.JOIN, body, 0, net.world.clock.wall())}
    assert net.ask("POST", wire.JOIN, content=body, headers=headers).status_code == 200
    again = net.ask("POST", wire.JOIN, content=body, headers=headers)
    assert again.status_code == 401 and "was seen before" in again.text
    assert net.world.who("a").fence == 1


def test_a_key_cannot_be_claimed_without_having_it(net):
    victim, token = AgentKey(), net.token()
    join = wire.JoinRequest(wire.PROTOCOL, "agent", "a", "A", "host", 1, token, key=victim.public)
    body, now = wire.encode(join), net.world.clock.wall()
    for header in (None, AgentKey().header("POST", wire.JOIN, body, 0, now), victim.header("POST", "/x", body, 0, now)):
        headers = {} if header is None else {HEADER: header}
        assert net.ask("POST", wire.JOIN, content=body, headers=headers).status_code == 401
    for key in ("", "not valid base64", base64.b64encode(b"short").decode()):
        body = wire.encode(dataclasses.replace(join, key=key))
        headers = {HEADER: victim.header("POST", wire.JOIN, body, 0, now)}
        assert net.ask("POST", wire.JOIN, content=body, headers=headers).status_code in (400, 401)
    assert net.world.store.call(lambda tx: tx.sites()) == []


def test_a_site_is_not_taken_over_with_its_agents_id_or_its_name(net, pair, world):
    a, _ = pair
    world.clock.t += world.config.fleet.lost_after + 1
    assert Site(net, "a", net.token()).reply.status_code == 409
    assert Site(net, "a", net.token(), agent=a.agent).reply.status_code == 409
    assert Site(net, "a", net.token(site="b")).reply.status_code == 403
    assert world.who("a").key == a.key.public


def test_a_new_credential_is_for_the_holder_of_the_key_only(net, pair, world):
    a, b = pair
    body = wire.encode(RenewRequest(a.agent, "a"))
    headers = b.headers("POST", wire.CREDENTIAL, body, credential=None)
    assert net.ask("POST", wire.CREDENTIAL, content=body, headers=headers).status_code == 401
    headers = a.headers("POST", wire.CREDENTIAL, body, credential=None)
    assert net.ask("POST", wire.CREDENTIAL, content=body, headers=headers).status_code == 200
    assert net.ask("POST", wire.CREDENTIAL, content=body, headers=headers).status_code == 401, "sent again"
    nobody = b.post(wire.CREDENTIAL, RenewRequest("nobody", "a"), signed=True, credential=None)
    assert nobody.status_code == 401


def test_a_removed_machine_gets_nothing_any_more(net, pair):
    a, b = pair
    operator = net.token("operator")
    assert net.show(operator, "POST", wire.NODE_REMOVE, NodeRemove("a", None)).status_code == 200
    beat = wire.Heartbeat(a.agent, "a", 1, "IDLE", "paused", None, None, "")
    assert a.post(wire.HEARTBEAT, beat).status_code == 401
    assert a.post(wire.CREDENTIAL, RenewRequest(a.agent, "a"), signed=True, credential=None).status_code == 401
    assert b.post(wire.HEARTBEAT, dataclasses.replace(beat, agent=b.agent, site="b")).status_code == 200


# -- other sites' rounds and files ------------------------------------------------------


def test_a_site_speaks_for_itself_only(net, pair, world):
    a, b = pair
    world.tick()
    values = ("b", 1, "job")
    commit = wire.CommitRequest(*values, 1, 0, SHA, 1, 4, 32, SHA, "weights", "", None, None, None, 1.0, False)
    for path, message in (
        (wire.HEARTBEAT, wire.Heartbeat(b.agent, "b", 1, "TRAINING", "train", "job", None, "")),
        (wire.LEAVE, wire.LeaveRequest(b.agent, "b", 1, "bye")),
        (wire.CHECKOUT, wire.CheckoutRequest(*values, None, None, False)),
        (wire.PROGRESS, wire.Progress(*values, 1, 1, 1, 1.0, 1.0)),
        (wire.COMMIT, commit),
    ):
        reply = a.post(path, message, signed=True)
        assert reply.status_code == 403 and "belongs to site 'a'" in reply.text, path
    assert not world.who("b").left_run


def test_a_sites_upload_is_neither_read_nor_committed_nor_spoilt_by_another(net, pair, world):
    a, b = pair
    data = b"a's contribution"
    sha = hashlib.sha256(data).hexdigest()
    assert a.post(wire.BLOBS, wire.BlobOffer(sha, len(data))).is_success
    part = wire.PART.format(sha256=sha, number=0)
    spoilt = b"x" * len(data)
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(spoilt).digest()).decode()}:"
    headers = {"authorization": f"Bearer {b.credential}", "content-digest": digest}
    assert net.ask("PUT", part, content=spoilt, headers=headers).status_code == 403
    end = wire.BLOB_COMMIT.format(sha256=sha)
    assert net.ask("POST", end, headers=b.headers("POST", end, b"")).status_code == 403
    assert a.upload(data).is_success
    assert b.post(wire.BLOBS, wire.BlobOffer(sha, len(data))).status_code == 403
    assert net.show(b.credential, "GET", wire.BLOB.format(sha256=sha)).status_code == 404
    assert net.show(a.credential, "GET", wire.BLOB.format(sha256=sha)).content == data


def test_a_contribution_of_another_site_cannot_be_handed_in_as_ones_own(net, pair, world):
    a, b = pair
    for site in (a, b):
        world.tick()
        world.beat(site.name, f"job-{site.name}", "start")
    ask = wire.CheckoutRequest("a", 1, "job-a", None, None, False)
    work = wire.decode(wire.CheckoutReply, a.post(wire.CHECKOUT, ask).content).assignment
    assert b.upload(b"b's contribution").is_success
    sha = hashlib.sha256(b"b's contribution").hexdigest()
    commit = wire.CommitRequest(
        "a", 1, "job-a", work.round, work.base_version, work.base_digest, 1, 4, 32, sha, work.codec, SHA, None, None,
        None, 1.0, False,
    )  # fmt: skip
    reply = a.post(wire.COMMIT, commit, signed=True)
    assert reply.status_code == 409 and "was not uploaded" in reply.text


def test_a_commit_counts_only_signed_in_time_once_and_as_it_was(net, pair, world):
    a, b = pair
    data = b"contribution"
    sha = hashlib.sha256(data).hexdigest()
    assert a.upload(data).is_success
    path = wire.BLOB_COMMIT.format(sha256=sha)
    bearer = {"authorization": f"Bearer {a.credential}"}
    now = world.clock.wall()
    for header in (
        None,
        b.key.header("POST", path, b"", 1, now),
        a.key.header("POST", path, b"other body", 1, now),
        a.key.header("POST", wire.BLOB_COMMIT.format(sha256="1" * 64), b"", 1, now),
    ):
        headers = bearer | ({HEADER: header} if header else {})
        assert net.ask("POST", path, headers=headers).status_code == 401
    late = net.ask("POST", path, headers=bearer | {HEADER: a.key.header("POST", path, b"", 1, now - 301)})
    assert late.status_code == 401 and "301 s behind" in late.text
    good = bearer | {HEADER: a.key.header("POST", path, b"", 1, now)}
    assert net.ask("POST", path, headers=good).status_code == 200
    assert net.ask("POST", path, headers=good).status_code == 401, "sent again"
    old = bearer | {HEADER: a.key.header("POST", path, b"", 0, now)}
    assert net.ask("POST", path, headers=old).status_code == 409, "another fencing token"


def messages(site):
    """What a machine says of its site, with the path."""
    values = (site.name, 1, "job")
    return (
        (wire.HEARTBEAT, wire.Heartbeat(site.agent, site.name, 1, "TRAINING", "train", "job", 9000.0, "")),
        (wire.CHECKOUT, wire.CheckoutRequest(*values, None, None, False)),
        (wire.PROGRESS, wire.Progress(*values, 1, 1, 1, 1.0, 1.0)),
        (wire.LEAVE, wire.LeaveRequest(site.agent, site.name, 1, "bye")),
    )


def test_a_stolen_credential_alone_says_nothing_of_its_site(net, pair, world):
    a, b = pair
    world.tick()
    before = [event.text for event in world.store.call(lambda tx: tx.last_events(100))]
    for path, message in messages(a):
        body, now = wire.encode(message), world.clock.wall()
        bearer = {"authorization": f"Bearer {a.credential}", "content-type": "application/json"}
        for header in (None, b.key.header("POST", path, body, 1, now), a.key.header("POST", path, b"{}", 1, now),
                       a.key.header("POST", path, body, 1, now - 301)):  # fmt: skip
            headers = bearer | ({HEADER: header} if header else {})
            assert net.ask("POST", path, content=body, headers=headers).status_code == 401, path
    live = world.service.fleet.find("a")
    assert (live.phase, live.job, live.checked_out_job, live.working_on) == ("paused", None, None, None)
    assert not world.who("a").left_run, "nothing of it counted"
    assert [event.text for event in world.store.call(lambda tx: tx.last_events(100))] == before


def test_what_a_machine_said_cannot_be_sent_again(net, pair, world):
    a, _ = pair
    world.tick()
    signer = Signer(a.key, world.clock.wall, 1)
    said = []
    for path, message in messages(a)[:3]:
        body = wire.encode(message)
        headers = {"authorization": f"Bearer {a.credential}", HEADER: signer.header("POST", path, body)}
        said.append((path, {"content": body, "headers": headers}))
    first, *others = said
    for path, request in (*others, first):
        assert net.ask("POST", path, **request).status_code in (200, 409), "they may overtake each other"
    for path, request in said:
        again = net.ask("POST", path, **request)
        assert again.status_code == 401 and "was seen before" in again.text
    restarted = Net(world)
    try:
        world.clock.t += SKEW_S + 1
        for path, request in said:
            late = restarted.ask("POST", path, **request)
            assert late.status_code == 401 and "behind" in late.text, "what was forgotten is too old"
    finally:
        restarted.close()


# -- names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..%2f..%2fstate.db", "%00", "A" * 64, "0" * 63, "0" * 65, "..", "~"]
)
def test_a_name_that_is_no_hash_reaches_no_file(net, pair, name):
    a, _ = pair
    for method, path in (("GET", f"/v1/blobs/{name}"), ("PUT", f"/v1/blobs/{name}/parts/0")):
        assert net.show(a.credential, method, path).status_code in (400, 404, 405), path
    path = f"/v1/blobs/{name}/commit"
    reply = net.ask("POST", path, headers=a.headers("POST", path, b""))
    assert reply.status_code in (400, 401, 404, 405)
    assert a.post(wire.BLOBS, wire.BlobOffer(name, 10)).status_code == 400


@pytest.mark.parametrize("name", ["../b", "a/b", "a\nb", "", "x" * 65, "\u202ea", "a b"])
def test_a_site_cannot_have_a_name_that_means_something_elsewhere(net, name):
    reply = Site(net, name, net.token()).reply
    assert reply.status_code in (400, 422), reply.text
    assert net.world.store.call(lambda tx: tx.sites()) == []


# -- secrets ------------------------------------------------------------------------------


def test_no_secret_is_in_any_answer_error_event_or_log(net, world, caplog):
    caplog.set_level(logging.DEBUG)
    join, operator, viewer = net.token(), net.token("operator"), net.token("viewer")
    a = Site(net, "a", join)
    beat = wire.Heartbeat(a.agent, "a", 1, "IDLE", "paused", None, None, "")
    for shown in (a.credential, operator, viewer, join, f"{join}x", f"x{operator}", a.credential[:-1]):
        for method, path in map(address, ROLES):
            net.show(shown, method, path)
        net.show(shown, "POST", wire.HEARTBEAT, beat)
        net.show(shown, "POST", wire.TOKEN_REVOKE, TokenRevoke(shown))
    for token in (join, f"{join}x", operator, operator[:-1], viewer):
        Site(net, "c", token)
    join_answers = {id(a.reply)}
    told = " ".join(r.text for r in net.answers if id(r) not in join_answers)
    events = " ".join(event.text for event in world.store.call(lambda tx: tx.last_events(1000)))
    status = wire.encode(world.status()).decode()
    secrets = [parse_token(text).secret for text in (join, operator, viewer)] + [a.credential]
    for secret in secrets:
        for where in (told, events, status, caplog.text):
            assert secret[:20] not in where
    assert net.world.store.call(lambda tx: tx.last_events(1)), "there is a log to look at"
