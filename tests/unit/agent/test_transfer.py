"""Uploads and downloads against a controller in memory that loses, cuts and changes bytes."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from pathlib import Path

import httpx
import pytest
from doubles import FakeClock

from agent.http import backoff, transfer
from agent.http.client import Control, reading_s
from agent.http.transfer import Stopped, download, pause_s, upload
from curtail import wire
from curtail.errors import CheckpointError, DataError, DiskError, NotFound, Refused, Unreachable, WireError
from curtail.system.disk import SystemDisk

PART = 10
DATA = bytes(range(47))
SHA = hashlib.sha256(DATA).hexdigest()


class Blobs:
    """A controller's blobs; `faults` are taken one per request of a kind."""

    def __init__(self):
        self.parts: dict[int, bytes] = {}
        self.whole: dict[str, bytes] = {}
        self.faults: dict[str, list] = {}
        self.received = 0
        self.ranges: list[str] = []

    def control(self):
        transport = httpx.MockTransport(self.handle)
        return Control(httpx.Client(transport=transport, base_url="http://127.0.0.1:1"), "c")

    def handle(self, request):
        assert request.headers["authorization"] == "Bearer c"
        kind = {"PUT": "part", "GET": "get"}.get(request.method) or (
            "commit" if "commit" in request.url.path else "offer"
        )
        fault = self.faults[kind].pop(0) if self.faults.get(kind) else None
        if isinstance(fault, int):
            return httpx.Response(fault, content=wire.encode(wire.Problem("X", "no", "")))
        if fault == "lost":
            raise httpx.ReadTimeout("lost", request=request)
        return getattr(self, kind)(request, fault)

    def offer(self, request, fault):
        offer = wire.decode(wire.BlobOffer, request.content)
        count = -(-offer.size // PART)
        missing = tuple(n for n in range(count) if n not in self.parts)
        complete = offer.sha256 in self.whole
        status = wire.BlobStatus(offer.sha256, offer.size, PART, () if complete else missing, complete)
        return httpx.Response(200, content=wire.encode(status))

    def part(self, request, fault):
        body = request.content if fault != "damaged" else b"x" * len(request.content)
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if request.headers["content-digest"] != f"sha-256=:{digest}:":
            return httpx.Response(400, content=wire.encode(wire.Problem("WireError", "damaged", "")))
        number = int(request.url.path.rsplit("/", 1)[1])
        self.parts[number] = body
        self.received += len(body)
        if fault == "cut":
            raise httpx.ReadError("cut", request=request)
        return httpx.Response(200, content=wire.encode(wire.Ack(True)))

    def commit(self, request, fault):
        data = b"".join(self.parts[n] for n in sorted(self.parts))
        sha = request.url.path.split("/")[-2]
        if hashlib.sha256(data).hexdigest() != sha:
            self.parts.clear()
            return httpx.Response(400, content=wire.encode(wire.Problem("WireError", "wrong hash", "")))
        self.whole[sha] = data
        return httpx.Response(200, content=wire.encode(wire.Ack(True)))

    def get(self, request, fault):
        sha = request.url.path.rsplit("/", 1)[1]
        if sha not in self.whole:
            return httpx.Response(404, content=wire.encode(wire.Problem("NotFound", "no blob", "")))
        data = self.whole[sha]
        header = request.headers.get("range")
        self.ranges.append(header or "")
        first = int(re.fullmatch(r"bytes=(\d+)-", header)[1]) if header and fault != "whole" else 0
        if header and fault != "whole" and first >= len(data):
            return httpx.Response(400, content=wire.encode(wire.Problem("WireError", "range", "")))
        body = data[first:] if fault != "changed" else b"?" * (len(data) - first)
        status = 206 if first else 200
        if fault == "cut":
            return httpx.Response(status, content=cut(body, request))
        return httpx.Response(status, content=body)


def cut(body, request):
    yield body[: len(body) // 2]
    raise httpx.ReadError("cut", request=request)


@pytest.fixture
def blobs():
    return Blobs()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(DATA)
    return path


def test_an_upload_arrives_whole(blobs, source):
    assert upload(blobs.control(), source, SHA, clock=FakeClock(0.0)) == len(DATA)
    assert blobs.whole[SHA] == DATA


def test_a_file_that_is_there_is_not_sent_again(blobs, source):
    blobs.whole[SHA] = DATA
    assert upload(blobs.control(), source, SHA, clock=FakeClock(0.0)) == 0
    assert blobs.received == 0


def test_only_missing_parts_are_sent(blobs, source):
    blobs.parts = {0: DATA[:10], 2: DATA[20:30]}
    assert upload(blobs.control(), source, SHA, clock=FakeClock(0.0)) == len(DATA) - 20
    assert blobs.whole[SHA] == DATA


def test_lost_answers_cost_pauses_and_nothing_else(blobs, source):
    blobs.faults = {"offer": ["lost"], "part": ["cut"], "commit": ["lost", 503]}
    clock = FakeClock(0.0)
    upload(blobs.control(), source, SHA, clock=clock)
    assert blobs.whole[SHA] == DATA and blobs.received == len(DATA)
    assert clock.t > 0


def test_an_upload_goes_on_when_the_controller_asks_for_patience(blobs, source):
    blobs.faults = {"offer": [429], "part": [408, 429], "commit": [429]}
    clock = FakeClock(0.0)
    transport = httpx.MockTransport(blobs.handle)
    control = Control(httpx.Client(transport=transport, base_url="http://127.0.0.1:1"), "c", clock=clock)
    upload(control, source, SHA, clock=clock)
    assert blobs.whole[SHA] == DATA and clock.t >= 3.0


def test_more_parts_travel_at_a_time_than_one_and_never_more_than_allowed(blobs, source):
    lock, under_way, seen = threading.Lock(), [0], []
    both = threading.Barrier(2)
    handle = blobs.part

    def part(request, fault):
        with lock:
            under_way[0] += 1
            seen.append(under_way[0])
            turn = len(seen)
        if turn <= 2:
            both.wait(10.0)
        with lock:
            answer = handle(request, fault)
            under_way[0] -= 1
        return answer

    blobs.part = part
    upload(blobs.control(), source, SHA, clock=FakeClock(0.0))
    assert 2 <= max(seen) <= transfer.PARALLEL and blobs.whole[SHA] == DATA


def test_a_damaged_part_is_sent_again(blobs, source):
    blobs.faults = {"part": ["damaged"]}
    upload(blobs.control(), source, SHA, clock=FakeClock(0.0))
    assert blobs.whole[SHA] == DATA


def test_an_upload_gives_up_after_its_patience(blobs, source):
    blobs.faults = {"offer": ["lost"] * 10}
    clock = FakeClock(0.0)
    with pytest.raises(Unreachable):
        upload(blobs.control(), source, SHA, clock=clock, patience=2)
    longest = pause_s(1) + pause_s(2)
    assert longest * (1 - backoff.BETWEEN) <= clock.t <= longest


def test_a_full_controller_is_reported_at_once(blobs, source):
    blobs.faults = {"offer": [507]}
    with pytest.raises(DiskError):
        upload(blobs.control(), source, SHA, clock=FakeClock(0.0))
    assert blobs.received == 0


def test_an_upload_that_is_gone_at_the_controller_begins_anew(blobs, source):
    blobs.faults = {"part": [None, 404]}
    upload(blobs.control(), source, SHA, clock=FakeClock(0.0))
    assert blobs.whole[SHA] == DATA


def test_a_refused_upload_is_reported(blobs, source):
    blobs.faults = {"offer": [409] * 5}
    with pytest.raises(Refused):
        upload(blobs.control(), source, SHA, clock=FakeClock(0.0))


def test_a_file_that_is_not_its_name_is_reported(blobs, source):
    source.write_bytes(DATA[::-1])
    with pytest.raises(CheckpointError, match="changed"):
        upload(blobs.control(), source, SHA, clock=FakeClock(0.0))


def test_a_controller_that_asks_for_a_part_beyond_the_end(blobs, source):
    blobs.offer = lambda request, fault: httpx.Response(
        200, content=wire.encode(wire.BlobStatus(SHA, len(DATA), PART, (99,), False))
    )
    with pytest.raises(WireError, match="99"):
        upload(blobs.control(), source, SHA, clock=FakeClock(0.0))


def test_a_stopped_upload_stops_between_parts(blobs, source):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Stopped):
        upload(blobs.control(), source, SHA, clock=FakeClock(0.0), stop=stop)
    assert blobs.received == transfer.PARALLEL * PART


def test_a_download_arrives_whole(blobs, tmp_path):
    blobs.whole[SHA] = DATA
    path = tmp_path / "out"
    assert download(blobs.control(), SHA, path, clock=FakeClock(0.0)) == len(DATA)
    assert path.read_bytes() == DATA and not path.with_name("out.part").exists()


def test_a_cut_download_goes_on_where_it_stopped(blobs, tmp_path):
    blobs.whole[SHA] = DATA
    blobs.faults = {"get": ["cut", "cut"]}
    path = tmp_path / "out"
    assert download(blobs.control(), SHA, path, clock=FakeClock(0.0)) == len(DATA)
    assert path.read_bytes() == DATA
    assert blobs.ranges == ["", "bytes=23-", "bytes=35-"]


def test_a_download_goes_on_in_another_process(blobs, tmp_path):
    blobs.whole[SHA] = DATA
    path = tmp_path / "out"
    path.with_name("out.part").write_bytes(DATA[:40])
    assert download(blobs.control(), SHA, path, clock=FakeClock(0.0)) == 7
    assert path.read_bytes() == DATA


def test_a_part_file_that_is_already_whole_is_published(blobs, tmp_path):
    blobs.whole[SHA] = DATA
    path = tmp_path / "out"
    path.with_name("out.part").write_bytes(DATA)
    assert download(blobs.control(), SHA, path, clock=FakeClock(0.0)) == 0
    assert path.read_bytes() == DATA


def test_a_controller_without_ranges_sends_all_again(blobs, tmp_path):
    blobs.whole[SHA] = DATA
    blobs.faults = {"get": ["whole"]}
    path = tmp_path / "out"
    path.with_name("out.part").write_bytes(b"z" * 40)
    assert download(blobs.control(), SHA, path, clock=FakeClock(0.0)) == len(DATA)
    assert path.read_bytes() == DATA


def test_a_wrong_part_file_is_thrown_away(blobs, tmp_path):
    blobs.whole[SHA] = DATA
    path = tmp_path / "out"
    path.with_name("out.part").write_bytes(b"z" * 40)
    download(blobs.control(), SHA, path, clock=FakeClock(0.0))
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("kind", [CheckpointError, DataError])
def test_a_hash_that_stays_wrong_is_an_error_and_leaves_nothing(blobs, tmp_path, kind):
    blobs.whole[SHA] = DATA
    blobs.faults = {"get": ["changed"] * 5}
    path = tmp_path / "out"
    with pytest.raises(kind, match="another hash"):
        download(blobs.control(), SHA, path, clock=FakeClock(0.0), kind=kind)
    assert list(tmp_path.iterdir()) == []


def test_a_download_gives_up_only_without_progress(blobs, tmp_path):
    blobs.whole[SHA] = DATA
    blobs.faults = {"get": ["lost"] * 10}
    with pytest.raises(Unreachable):
        download(blobs.control(), SHA, tmp_path / "out", clock=FakeClock(0.0), patience=2)
    assert len(blobs.faults["get"]) == 7


def test_a_missing_blob_is_reported_at_once(blobs, tmp_path):
    with pytest.raises(NotFound):
        download(blobs.control(), SHA, tmp_path / "out", clock=FakeClock(0.0))


def test_more_bytes_than_promised_are_refused(blobs, tmp_path):
    blobs.whole[SHA] = DATA
    with pytest.raises(DataError, match="longer"):
        download(blobs.control(), SHA, tmp_path / "out", clock=FakeClock(0.0), size=20)


def test_a_crash_while_publishing_leaves_nothing_under_the_name(blobs, tmp_path):
    class Broken(SystemDisk):
        def publish(self, op: str, temp: Path, path: Path) -> None:
            raise DiskError(f"full at {op}")

    blobs.whole[SHA] = DATA
    with pytest.raises(DiskError, match="BLOB"):
        download(blobs.control(), SHA, tmp_path / "out", Broken(), clock=FakeClock(0.0))
    assert not (tmp_path / "out").exists() and (tmp_path / "out.part").read_bytes() == DATA


def test_a_lost_line_is_noticed_by_how_much_there_is_to_send_and_to_read(tmp_path):
    waits = {}

    class Timed(Blobs):
        def handle(self, request):
            waits[request.method, request.url.path.split("/")[-1]] = request.extensions["timeout"]["read"]
            return super().handle(request)

    path, blobs = tmp_path / "file", Timed()
    path.write_bytes(DATA)
    upload(blobs.control(), path, SHA)
    assert waits and all(10.0 <= seconds < 11.0 for seconds in waits.values()), "47 bytes"
    download(blobs.control(), SHA, tmp_path / "got", SystemDisk())
    assert waits["GET", SHA] == transfer.SILENCE_S
    assert reading_s(2_200_000_000) == pytest.approx(120.0)
    part = wire.PART_BYTES / transfer.PART_BYTES_S
    assert 100.0 < part < 130.0, "a whole part on the slowest line"
