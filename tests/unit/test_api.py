"""The HTTP face over a controller in memory: who may ask, what is refused, and bytes that arrive whole."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os

import httpx
import pytest

from controller import api, blobs
from controller.api import create_app
from curtail import wire

INFO = wire.RunInfo("run", "n", 1, "p", {}, "m", "t", 8, 100, 4, 4, "{}", "int8", False, 20, 600.0)


class Http:
    """Requests to an application in this process, one at a time."""

    def __init__(self, app) -> None:
        self._loop = asyncio.new_event_loop()
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
        self.headers = self._http.headers

    def request(self, method: str, path: str, **options) -> httpx.Response:
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
    made = Http(create_app(world.service, world.uploads, INFO, lambda: world.sick))
    yield made
    made.close()


def join(http, site="a", token="ct0.abc.secret"):
    request = wire.JoinRequest(wire.PROTOCOL, f"agent-{site}", site, "A", "host", 1, token)
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


def test_an_oversized_body_is_refused(http, credential):
    reply = http.post(wire.HEARTBEAT, content=b" " * (wire.MAX_BODY + 1))
    assert reply.status_code == 400 and "longer" in reply.json()["message"]


def test_an_upload_arrives_in_parts_and_can_be_fetched_by_its_hash(http, credential, monkeypatch):
    monkeypatch.setattr(blobs, "PART_BYTES", 1000)
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
    assert http.get(wire.BLOB.format(sha256=sha), headers={"range": "bytes=2500-"}).status_code == 400


def test_a_part_that_comes_again_damaged_or_too_long_leaves_the_one_that_is_there(http, credential, monkeypatch):
    monkeypatch.setattr(blobs, "PART_BYTES", 1000)
    monkeypatch.setattr(api, "PIECE", 300)
    data = os.urandom(1500)
    sha = hashlib.sha256(data).hexdigest()
    http.post(wire.BLOBS, content=wire.encode(wire.BlobOffer(sha, len(data))))
    for number in (0, 1):
        part = data[number * 1000 : (number + 1) * 1000]
        headers = {"content-digest": digest(part)}
        http.put(wire.PART.format(sha256=sha, number=number), content=part, headers=headers)
    headers = {"content-digest": digest(data[:1000])}
    for wrong, why in ((b"x" * 1000, "damaged"), (data[:1001], "longer"), (data[:999], "999 bytes")):
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
    monkeypatch.setattr(blobs, "RESERVE", 1 << 60)
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
