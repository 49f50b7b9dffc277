"""The limit of a link: what it lets through in which time."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import httpx
import pytest
from doubles import FakeClock

from agent.http.bandwidth import Link, parse_rate
from agent.http.client import Control
from agent.http.transfer import download, upload
from agent.job.agent_link import read_environment
from agent.launcher import JobSpec, job_environment
from curtail import wire
from curtail.errors import UsageError


@pytest.mark.parametrize(
    ("text", "rate"), [("100Mbit/s", 12.5e6), ("1 Gbit/s", 125e6), ("800kbit/s", 1e5), ("12.5 MB/s", 12.5e6)]
)
def test_rates_are_read_with_their_unit(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "100", "100 Mb", "fast", "0 Mbit/s", "-1 MB/s", "1e9 MB/s", "255kbit/s"])
def test_a_rate_without_number_or_unit_is_refused_with_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_rate(text)
    assert "100Mbit/s" in caught.value.remedy


def test_both_directions_share_one_rate(tmp_path):
    clock, data, blobs = FakeClock(), bytes(200_000), {}

    def handle(request):
        path = request.url.path
        if path == wire.BLOBS:
            offer = wire.decode(wire.BlobOffer, request.content)
            return httpx.Response(
                200, content=wire.encode(wire.BlobStatus(offer.sha256, offer.size, 50_000, (0, 1, 2, 3), False))
            )
        if request.method == "PUT":
            blobs[path] = (request.headers["content-length"], request.read())
        if request.method == "GET":
            return httpx.Response(200, content=data)
        return httpx.Response(200, content=wire.encode(wire.Ack(True)))

    http = httpx.Client(transport=httpx.MockTransport(handle), base_url="http://127.0.0.1:1")
    control = Control(http, "c", Link(100_000.0, clock))
    file, sha = tmp_path / "file", hashlib.sha256(data).hexdigest()
    file.write_bytes(data)
    began = clock.t
    assert upload(control, file, sha, clock=clock) == 200_000
    assert {(length, len(body)) for length, body in blobs.values()} == {("50000", 50_000)}
    up = clock.t - began
    assert download(control, sha, tmp_path / "copy", clock=clock) == 200_000
    both = clock.t - began
    assert up >= 1.7 and 3.7 <= both <= 4.1 + up  # threads that wait side by side add up on this clock
    assert (tmp_path / "copy").read_bytes() == data
    assert max(clock.slept) < 4.0


def test_a_job_is_told_the_limit_of_its_agent(tmp_path):
    spec = JobSpec("j", tmp_path, "http://127.0.0.1:1", tmp_path / "c", "a", 1, tmp_path, 1, 1, link_bytes_s=12.5e6)
    assert read_environment(job_environment(spec, {})).link_bytes_s == 12.5e6
    assert read_environment(job_environment(replace(spec, link_bytes_s=0.0), {})).link_bytes_s == 0.0
