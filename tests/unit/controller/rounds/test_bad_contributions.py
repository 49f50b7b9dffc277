"""Uploads that are no contribution, over HTTP: each is refused with a reason, and the round goes on without it."""

from __future__ import annotations

import base64
import hashlib
import itertools
from dataclasses import replace

import httpx
import numpy as np
import pytest
from asgi import AsgiTransport

from controller.http.app import create_app
from curtail import wire
from curtail.security.signing import HEADER, AgentKey
from curtail.system.disk import SystemDisk
from nanochat import delta

INFO = wire.RunInfo("run", "n", 1, "p", {}, "m", "t", 8, 100, 4, 4, "{}", "int8", False, 20, 600.0)


class Round:
    """Two sites over HTTP in one federated round; `good` behaves, `bad` does not."""

    def __init__(self, world, tmp_path):
        self.world, self.path = world, tmp_path / "made"
        app = create_app(world.service, world.uploads, INFO, lambda: None)
        self.http = httpx.Client(transport=AsgiTransport(app), base_url="http://127.0.0.1")
        self.credentials, self.work, self.key = {}, {}, AgentKey()
        for site in ("good", "bad"):
            join = wire.JoinRequest(wire.PROTOCOL, f"agent-{site}", site, "A", "host", 1, "ct0.abc.secret")
            join = replace(join, key=self.key.public)
            self.credentials[site] = self.ask("", "POST", wire.JOIN, wire.JoinReply, join).credential
            world.tick()
            world.beat(site, f"job-{site}", "start")
        first = self.checkout("good")
        assert self.checkout("bad") is None
        self.commit("good", first, self.upload("good", self.encoded(first)), steps=1)
        world.merge()
        self.work = {site: self.checkout(site) for site in ("good", "bad")}

    def send(self, site, method, path, content=b"", **headers):
        if site:
            headers["authorization"] = f"Bearer {self.credentials[site]}"
        headers[HEADER] = self.key.header(method, path, content, 1, self.world.clock.wall())
        return self.http.request(method, path, content=content, headers=headers)

    def ask(self, site, method, path, kind, message):
        reply = self.send(site, method, path, wire.encode(message))
        assert reply.status_code == 200, reply.text
        return wire.decode(kind, reply.content)

    def checkout(self, site):
        request = wire.CheckoutRequest(site, 1, f"job-{site}", None, None, False)
        return self.ask(site, "POST", wire.CHECKOUT, wire.CheckoutReply, request).assignment

    def encoded(self, work, change=lambda values: values, shift=0.25):
        """A contribution's bytes; `change` spoils it."""
        base = self.world.base(work.base_version)
        self.digest = ""
        if work.codec == "weights":
            blob, self.digest = self.world.contribution(work, shift)
            data = self.world.uploads.path(blob).read_bytes()
            self.world.store.call(lambda tx: tx.drop_blob(blob))
            self.world.uploads.remove(blob)
            return data
        arrays = delta.encode({name: np.full_like(array, shift) for name, array in base.items()}, work.codec)
        delta.write_delta(self.path, change(arrays), SystemDisk(), "TEST")
        return self.path.read_bytes()

    def upload(self, site, data):
        """All of `data`, under its own name."""
        name = hashlib.sha256(data).hexdigest()
        known = self.ask(site, "POST", wire.BLOBS, wire.BlobStatus, wire.BlobOffer(name, len(data)))
        for number in known.missing:  # none, if the other site sent the same bytes
            start = number * wire.PART_BYTES
            assert self.part(site, name, number, data[start : start + wire.PART_BYTES]).status_code == 200
        assert self.send(site, "POST", wire.BLOB_COMMIT.format(sha256=name)).status_code == 200
        return name

    def part(self, site, name, number, body, of=None):
        check = base64.b64encode(hashlib.sha256(body if of is None else of).digest()).decode()
        headers = {"content-digest": f"sha-256=:{check}:"}
        return self.send(site, "PUT", wire.PART.format(sha256=name, number=number), body, **headers)

    def commit(self, site, work, blob, steps=2, **changes):
        values = {
            "site": site, "fence": 1, "job": f"job-{site}", "round": work.round, "base_version": work.base_version,
            "base_digest": work.base_digest, "steps": steps, "samples": 4 * steps, "tokens": 32 * steps, "blob": blob,
            "codec": work.codec, "digest": self.digest, "loss_first": 4.0, "loss_mean": 3.0, "loss_last": 2.0,
            "seconds": 1.0, "keep": False,
        }  # fmt: skip
        return self.send(site, "POST", wire.COMMIT, wire.encode(wire.CommitRequest(**{**values, **changes})))

    def goes_on(self, bad_tokens=0):
        """The good site's contribution makes the next version, in which nothing of the bad one is."""
        work = self.work["good"]
        assert (
            self.commit("good", work, self.upload("good", self.encoded(work, shift=0.125)), steps=3).status_code == 200
        )
        self.world.beat("bad", None)
        self.world.beat("good", "job-good", "train")
        self.world.tick()
        self.world.merge()
        status = self.world.status()
        assert status.version == 2 and {s.site: s.tokens for s in status.sites} == {"good": 4 * 32, "bad": bad_tokens}
        self.world.check()


@pytest.fixture
def round_of_two(world, tmp_path):
    made = Round(world, tmp_path)
    yield made
    made.http.close()


def problem(reply, status):
    assert reply.status_code == status, reply.text
    return wire.decode(wire.Problem, reply.content)


def test_a_truncated_part_is_refused(round_of_two):
    data = round_of_two.encoded(round_of_two.work["bad"])
    name = hashlib.sha256(data).hexdigest()
    round_of_two.ask("bad", "POST", wire.BLOBS, wire.BlobStatus, wire.BlobOffer(name, len(data)))
    assert "bytes" in problem(round_of_two.part("bad", name, 0, data[:-1]), 400).message
    assert "missing" in problem(round_of_two.send("bad", "POST", wire.BLOB_COMMIT.format(sha256=name)), 409).message
    round_of_two.goes_on()


def test_a_corrupted_part_is_refused(round_of_two):
    data = round_of_two.encoded(round_of_two.work["bad"])
    name = hashlib.sha256(data).hexdigest()
    round_of_two.ask("bad", "POST", wire.BLOBS, wire.BlobStatus, wire.BlobOffer(name, len(data)))
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    assert "damaged" in problem(round_of_two.part("bad", name, 0, flipped, of=data), 400).message
    assert round_of_two.part("bad", name, 0, flipped).status_code == 200, "its checksum is that of the damage"
    refused = problem(round_of_two.send("bad", "POST", wire.BLOB_COMMIT.format(sha256=name)), 400)
    assert "not what its name says" in refused.message
    assert "not uploaded" in problem(round_of_two.commit("bad", round_of_two.work["bad"], name), 409).message
    round_of_two.goes_on()


def not_a_number(arrays):
    name = next(name for name, array in sorted(arrays.items()) if array.dtype == np.float32)
    spoilt = arrays[name].copy()
    spoilt.reshape(-1)[0] = np.nan
    return {**arrays, name: spoilt}


def another_shape(arrays):
    return {
        name: array[:-1] if array.ndim and len(array) > 1 and array.dtype == np.int8 else array
        for name, array in arrays.items()
    }


def without_one(arrays):
    return dict(itertools.islice(sorted(arrays.items()), 2, None))


@pytest.mark.parametrize("change", [not_a_number, another_shape, without_one])
def test_a_delta_that_is_spoilt_is_refused_at_the_merge_and_its_samples_go_back(round_of_two, change):
    work = round_of_two.work["bad"]
    blob = round_of_two.upload("bad", round_of_two.encoded(work, change))
    assert round_of_two.commit("bad", work, blob).status_code == 200
    round_of_two.goes_on()
    refused = round_of_two.world.store.call(lambda tx: tx.member(work.round, "bad"))
    assert refused.state == "REFUSED" and refused.reason
    assert any("bad was refused" in event.text for event in round_of_two.world.status().events)


def test_a_contribution_from_another_base_is_refused(round_of_two):
    work = round_of_two.work["bad"]
    blob = round_of_two.upload("bad", round_of_two.encoded(work))
    for change in ({"base_version": 0}, {"base_digest": "0" * 64}):
        assert "other weights" in problem(round_of_two.commit("bad", work, blob, **change), 409).message
    round_of_two.goes_on()


def test_a_replayed_commit_counts_once_and_an_old_one_not_at_all(round_of_two):
    work = round_of_two.work["bad"]
    blob = round_of_two.upload("bad", round_of_two.encoded(work))
    receipts = [wire.decode(wire.Receipt, round_of_two.commit("bad", work, blob).content) for _ in range(3)]
    assert [r.repeated for r in receipts] == [False, True, True] and len({r.receipt for r in receipts}) == 1
    round_of_two.goes_on(bad_tokens=64)
    again = round_of_two.commit("bad", work, blob)
    assert wire.decode(wire.Receipt, again.content).repeated, "also after the merge"
    assert round_of_two.commit("bad", work, "1" * 64).status_code == 409, "but not with another file"
    assert round_of_two.commit("bad", work, blob, round=work.round + 1).status_code == 409, "nor for another round"
    round_of_two.world.check()
