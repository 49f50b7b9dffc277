"""The HTTP face over a controller in memory: who may ask, what is refused, and bytes that arrive whole."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import os

import httpx
import pytest

from controller.files import uploads
from controller.http import rate_limit, request_limits, transfers
from controller.http.app import ServerIdentity, create_app
from curtail import wire
from curtail.security.signing import HEADER, AgentKey, Signer
from curtail.wire import limits

INFO = wire.RunInfo("run", "n", 1, "p", {}, "m", "t", 8, 100, 4, 4, "{}", "int8", False, 20, 600.0)


class Http:
    """Requests to an application in this process, one at a time."""

    def __init__(self, app, **options) -> None:
        self._loop = asyncio.new_event_loop()
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app, **options), base_url="http://127.0.0.1")
        self.headers = self._http.headers
        self.signer: Signer | None = None  # of every request

    def request(self, method: str, path: str, **options) -> httpx.Response:
        if self.signer is not None:
            content = options.get("content", b"")
            signature = self.signer.header(method, path, content if isinstance(content, bytes) else b"")
            options["headers"] = {HEADER: signature} | options.get("headers", {})
        return self._loop.run_until_complete(self._http.request(method, path, **options))

    def get(self, path: str, **options) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options) -> httpx.Response:
        return self.request("POST", path, **options)

    def put(self, path: str, **options) -> httpx.Response:
        return self.request("PUT", path, **options)

    def close(self) -> None:
        self._loop.run_until_complete(self._http.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture
def http(world):
    world.sick = None
    made = Http(create_app(world.service, world.uploads, INFO, lambda: world.sick, ServerIdentity(open_status=True)))
    made.signer = Signer(AgentKey(), world.clock.wall, 1)
    yield made
    made.close()


def join(http, site="a", token="ct0.abc.secret"):
    request = wire.JoinRequest(wire.PROTOCOL, f"agent-{site}", site, "A", "host", 1, token, key=http.signer.key.public)
    return http.post(wire.JOIN, content=wire.encode(request))


@pytest.fixture
def credential(http):
    reply = wire.decode(wire.JoinReply, join(http).content)
    http.headers["authorization"] = f"Bearer {reply.credential}"
    return reply.credential


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def test_a_wrong_token_is_401_with_what_to_do(http):
    reply = join(http, token="ct0.abc.guess")
    problem = wire.decode(wire.Problem, reply.content)
    assert reply.status_code == 401 and problem.error == "AuthError" and "join-token" in problem.remedy


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", wire.HEARTBEAT),
        ("POST", wire.LEAVE),
        ("GET", wire.RUN),
        ("POST", wire.CHECKOUT),
        ("POST", wire.PROGRESS),
        ("POST", wire.COMMIT),
        ("POST", wire.BLOBS),
        ("PUT", wire.PART.format(sha256="0" * 64, number=0)),
        ("POST", wire.BLOB_COMMIT.format(sha256="0" * 64)),
        ("GET", wire.BLOB.format(sha256="0" * 64)),
    ],
)
def test_nothing_but_status_and_health_answers_without_a_credential(http, method, path):
    assert http.request(method, path).status_code == 401
    assert http.request(method, path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert http.get(wire.STATUS).status_code == 200 and http.get(wire.HEALTH).status_code == 200


def test_a_sick_controller_says_why(http, world):
    world.sick = "the energy simulation failed"
    reply = http.get(wire.HEALTH)
    assert reply.status_code == 503 and "energy" in reply.text


def test_a_mistyped_body_is_400_and_names_the_field(http, credential):
    reply = http.post(wire.HEARTBEAT, content=b'{"agent": 1}')
    assert reply.status_code == 400 and "Heartbeat" in reply.json()["message"]


async def asynchronous(pieces):
    """A body whose length nobody announces."""
    for piece in pieces:
        yield piece


def test_an_oversized_body_is_refused(http, credential):
    for content in (b" " * (limits.MAX_REQUEST + 1), iter([b" " * limits.MAX_REQUEST, b" "])):
        reply = http.post(wire.HEARTBEAT, content=asynchronous(content) if not isinstance(content, bytes) else content)
        assert reply.status_code == 413 and str(limits.MAX_REQUEST) in reply.json()["message"]


def test_an_upload_arrives_in_parts_and_can_be_fetched_by_its_hash(http, credential, world):
    world.uploads.part_bytes = 1000
    data = os.urandom(2500)
    sha = hashlib.sha256(data).hexdigest()
    offer = wire.encode(wire.BlobOffer(sha, len(data)))
    assert http.post(wire.BLOBS, content=offer).json()["missing"] == [0, 1, 2]
    for number in (2, 0):
        part = data[number * 1000 : (number + 1) * 1000]
        headers = {"content-digest": digest(part)}
        assert http.put(wire.PART.format(sha256=sha, number=number), content=part, headers=headers).status_code == 200
    assert http.post(wire.BLOBS, content=offer).json()["missing"] == [1], "it resumes"
    assert http.post(wire.BLOB_COMMIT.format(sha256=sha)).status_code == 409
    headers = {"content-digest": digest(data[1000:2000])}
    damaged = http.put(wire.PART.format(sha256=sha, number=1), content=b"x" * 1000, headers=headers)
    assert damaged.status_code == 400 and "damaged" in damaged.json()["message"]
    http.put(wire.PART.format(sha256=sha, number=1), content=data[1000:2000], headers=headers)
    for _ in range(2):
        assert http.post(wire.BLOB_COMMIT.format(sha256=sha)).json()["complete"], "a repeat is no error"
    assert http.post(wire.BLOBS, content=offer).json()["complete"]
    assert http.get(wire.BLOB.format(sha256=sha)).content == data
    part = http.get(wire.BLOB.format(sha256=sha), headers={"range": "bytes=2400-"})
    assert part.status_code == 206 and part.content == data[2400:]
    assert http.get(wire.BLOB.format(sha256=sha), headers={"range": "bytes=2500-"}).status_code == 416


def test_a_part_that_comes_again_damaged_or_too_long_leaves_the_one_that_is_there(http, credential, world, monkeypatch):
    world.uploads.part_bytes = 1000
    monkeypatch.setattr(transfers, "PIECE", 300)
    data = os.urandom(1500)
    sha = hashlib.sha256(data).hexdigest()
    http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer(sha, len(data))))
    for number in (0, 1):
        part = data[number * 1000 : (number + 1) * 1000]
        headers = {"content-digest": digest(part)}
        http.put(wire.PART.format(sha256=sha, number=number), content=part, headers=headers)
    headers = {"content-digest": digest(data[:1000])}
    for wrong, why in ((b"x" * 1000, "damaged"), (data[:1001], "announces 1001"), (data[:999], "announces 999")):
        reply = http.put(wire.PART.format(sha256=sha, number=0), content=wrong, headers=headers)
        assert reply.status_code == 400 and why in reply.json()["message"]
    assert http.post(wire.BLOB_COMMIT.format(sha256=sha)).json()["complete"]
    assert http.get(wire.BLOB.format(sha256=sha)).content == data


def test_an_upload_that_is_not_what_its_name_says_is_thrown_away(http, credential):
    sha = hashlib.sha256(b"promised").hexdigest()
    http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer(sha, 8)))
    headers = {"content-digest": digest(b"deliverd")}
    http.put(wire.PART.format(sha256=sha, number=0), content=b"deliverd", headers=headers)
    assert http.post(wire.BLOB_COMMIT.format(sha256=sha)).status_code == 400
    assert http.get(wire.BLOB.format(sha256=sha)).status_code == 404


def test_an_upload_too_large_for_the_model_is_refused_before_bytes_are_sent(http, credential):
    offer = wire.encode(wire.BlobOffer("0" * 64, 1 << 40))
    assert http.post(wire.BLOBS, content=offer).status_code == 409


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "A" * 64, "0" * 63])
def test_a_name_that_is_no_hash_reaches_no_file(http, credential, name):
    assert http.get(f"/v1/blobs/{name}").status_code in (400, 404)


def test_a_disk_without_room_is_507(http, credential, monkeypatch):
    monkeypatch.setattr(uploads, "RESERVE", 1 << 60)
    reply = http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer("1" * 64, 100)))
    assert reply.status_code == 507 and "free some space" in reply.json()["remedy"]


def test_the_whole_way_of_a_site_works_over_http(http, credential, world):
    world.tick()
    beat = wire.Heartbeat("agent-a", "a", 1, "STARTING", "start", "job", None, "")
    assert http.post(wire.HEARTBEAT, content=wire.encode(beat)).json()["granted"]
    assert http.get(wire.RUN).json()["sequence_len"] == 8
    ask = wire.CheckoutRequest("a", 1, "job", None, None, False)
    reply = wire.decode(wire.CheckoutReply, http.post(wire.CHECKOUT, content=wire.encode(ask)).content)
    assert reply.kind == "train"
    bye = wire.LeaveRequest("agent-a", "a", 1, "done")
    assert http.post(wire.LEAVE, content=wire.encode(bye)).json()["ok"]
    assert wire.decode(wire.Status, http.get(wire.STATUS).content).sites == ()


# -- limits ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_body_that_is_no_json_by_its_type_is_415(http, credential, kind):
    reply = http.post(wire.HEARTBEAT, content=b"{}", headers={"content-type": kind})
    assert reply.status_code == 415 and "application/json" in reply.json()["remedy"]
    fine = http.post(wire.HEARTBEAT, content=b"{}", headers={"content-type": "Application/JSON; charset=utf-8"})
    assert fine.status_code == 400 and "missing" in fine.json()["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity", "x"])
def test_a_packed_body_is_refused_before_it_is_unpacked(http, credential, encoding):
    bomb = gzip.compress(bytes(10_000_000))
    for method, path in (("POST", wire.HEARTBEAT), ("PUT", wire.PART.format(sha256="0" * 64, number=0))):
        reply = http.request(method, path, content=bomb, headers={"content-encoding": encoding})
        assert reply.status_code == 415 and "Content-Encoding" in reply.json()["message"]


def test_a_body_that_trickles_in_is_408_and_its_connection_ends(http, credential, monkeypatch):
    monkeypatch.setattr(request_limits, "GRACE_S", 0.02)

    async def trickle():
        yield b"{"
        await asyncio.Event().wait()

    reply = http.post(wire.HEARTBEAT, content=trickle())
    assert reply.status_code == 408 and reply.headers["connection"] == "close"
    assert "1 bytes so far" in reply.json()["message"]


def test_too_many_requests_of_one_machine_are_429_with_the_time_and_its_heartbeats_still_pass(http, credential, world):
    ask = wire.encode(wire.CheckoutRequest("a", 1, "job", None, None, False))
    beat = wire.encode(wire.Heartbeat("agent-a", "a", 1, "IDLE", "paused", None, None, ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate_limit, "CONTROL", rate_limit.Rate(1.0, 5.0))
        app = create_app(world.service, world.uploads, INFO, lambda: None, clock=world.clock)
        other = Http(app)
        other.headers["authorization"], other.signer = http.headers["authorization"], http.signer
        codes = [other.post(wire.CHECKOUT, content=ask).status_code for _ in range(7)]
        assert codes == [200] * 6 + [429], "the first one as a stranger"
        refused = other.post(wire.CHECKOUT, content=ask)
        assert refused.headers["retry-after"] == "1" and refused.json()["error"] == "Throttled"
        assert other.post(wire.HEARTBEAT, content=beat).status_code == 200
        world.clock.t += 1.0
        assert other.post(wire.CHECKOUT, content=ask).status_code == 200
        other.close()


def test_a_refused_offer_leaves_nothing_behind(http, credential, world):
    for number in range(3):
        offer = wire.encode(wire.BlobOffer(f"{number:064x}", 1 << 40))
        reply = http.post(wire.BLOBS, content=offer)
        assert reply.status_code == 409 and str(1 << 40) in reply.json()["message"]
    assert world.store.call(lambda tx: tx.uploads_of("a")) == []
    assert not list(world.uploads.folder.glob("incoming/*"))


def test_a_site_cannot_fill_the_disk_with_uploads_it_never_commits(http, credential, world, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_UPLOADS", 3)
    for number in range(3):
        assert http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer(f"{number:064x}", 100))).status_code == 200
    reply = http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer("f" * 64, 100)))
    assert reply.status_code == 409 and "3 files" in reply.json()["message"]
    assert http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer(f"{1:064x}", 100))).json()["missing"] == [0]
    os.utime(world.uploads.folder / "incoming" / f"{2:064x}" / "data", (0, 0))  # its job was killed long ago
    assert http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer("f" * 64, 100))).status_code == 200
    assert sorted(world.store.call(lambda tx: tx.uploads_of("a"))) == [f"{0:064x}", f"{1:064x}", "f" * 64]


def test_the_rest_of_a_file_is_sent_only_if_it_is_the_same_file(http, credential, world):
    sha = world.upload(b"0123456789")
    path = wire.BLOB.format(sha256=sha)
    same = http.get(path, headers={"range": "bytes=4-", "if-range": f'"{sha}"'})
    assert same.status_code == 206 and same.content == b"456789" and same.headers["content-range"] == "bytes 4-9/10"
    other = http.get(path, headers={"range": "bytes=4-", "if-range": '"another"'})
    assert other.status_code == 200 and other.content == b"0123456789"
    beyond = http.get(path, headers={"range": "bytes=10-"})
    assert beyond.status_code == 416 and beyond.headers["content-range"] == "bytes */10"
    assert beyond.json()["error"] == "RangeRefused"


def test_bytes_that_a_site_fetches_are_counted_in_its_ledger_row(http, credential, world):
    sha = world.upload(b"0123456789")
    world.tick(1.0)
    http.get(wire.BLOB.format(sha256=sha))
    http.get(wire.BLOB.format(sha256=sha), headers={"range": "bytes=4-"})
    world.tick(1.0)
    world.store.call(lambda tx: world.service.energy_ledger.finish(tx, "a", world.service.replay.now()))
    rows = world.store.call(lambda tx: tx.entries())
    assert sum(row.detail.network_bytes for row in rows) == 10 + 6


@pytest.mark.parametrize("number", ["x", "-1", "1.5", "9" * 5000, "%D9%A3", "1000000"])
def test_a_part_whose_number_is_none_or_too_large_is_a_problem_of_4xx(http, credential, number):
    data = b"x" * 10
    sha = hashlib.sha256(data).hexdigest()
    http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer(sha, len(data))))
    path = wire.PART.format(sha256=sha, number=0)[:-1] + number
    reply = http.put(path, content=data, headers={"content-digest": digest(data)})
    assert reply.status_code in (400, 414) and wire.decode(wire.Problem, reply.content).message


def test_a_fault_inside_is_a_problem_that_tells_nothing(world):
    def broken():
        raise RuntimeError("the secret is 42")

    app = create_app(world.service, world.uploads, INFO, broken)
    http = Http(app, raise_app_exceptions=False)
    reply = http.get(wire.HEALTH)
    assert reply.status_code == 500 and "42" not in reply.text
    assert wire.decode(wire.Problem, reply.content).remedy == "see its log"
    http.close()
