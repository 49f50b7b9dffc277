"""The patience of a hand-in (agent.job.submit); what happens in a whole job is in test_job.py."""

from __future__ import annotations

import httpx
import pytest
from doubles import FakeClock

from agent import job_files
from agent.http.client import Control
from agent.job.agent_link import JobEnvironment
from agent.job.controller_link import ControllerLink
from agent.job.submit import NO_ANSWER, ContributionFile, Patience, submit
from curtail import wire
from curtail.errors import AuthError
from curtail.system.disk import SystemDisk, file_sha256

REQUEST = wire.CommitRequest(
    "A", 1, "j", 7, 6, "base", 3, 6, 48, "blob", "int8", "", loss_first=2.0, loss_mean=1.5, loss_last=1.0, seconds=9.0,
    keep=False,
)  # fmt: skip


def test_patience_ends_an_outage_after_the_first_failure_and_not_before():
    patience = Patience(10.0)
    assert patience.pause_s(100.0, 0.0) is not None and patience.until == 110.0
    assert patience.pause_s(109.9, 0.0) is not None
    assert patience.pause_s(110.0, 0.0) is None


def test_pauses_grow_and_chance_takes_some_off():
    patience, spread = Patience(1000.0), Patience(1000.0)
    plain = [patience.pause_s(0.0, 0.0) for _ in range(6)]
    assert plain == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert [spread.pause_s(0.0, 1.0) for _ in range(6)] == [seconds / 2 for seconds in plain]


def test_without_an_outage_to_wait_for_the_first_failure_is_the_last():
    assert Patience(0.0).pause_s(5.0, 0.0) is None


class Controller:
    """Answers each request with the next of its answers; with the last one ever after."""

    def __init__(self, tmp_path, *commits):
        self.commits, self.paths, self.lines = list(commits), [], []
        self.clock = FakeClock(1000.0)
        env = JobEnvironment("http://127.0.0.1:1", tmp_path / "c", "A", 1, "j", tmp_path / "cache", tmp_path, 1)
        http = httpx.Client(transport=httpx.MockTransport(self.answer), base_url=env.url)
        control = Control(http, "c", clock=self.clock)
        self.link = ControllerLink(env, control, self.clock, SystemDisk(), self.lines.append)
        self.link.outage_s = 60.0
        path = tmp_path / "contribution"
        path.write_bytes(b"contribution")
        self.file = ContributionFile(path, file_sha256(path), 12)

    def answer(self, request):
        self.paths.append(request.url.path)
        if request.url.path == wire.BLOBS:
            return httpx.Response(200, content=wire.encode(wire.BlobStatus(self.file.sha256, 12, 16, (), True)))
        status = self.commits.pop(0) if len(self.commits) > 1 else self.commits[0]
        if status == "lost":
            raise httpx.ReadTimeout("lost", request=request)
        receipt = wire.Receipt("r", 7, "A", 48, repeated=True)
        return httpx.Response(status, content=wire.encode(receipt if status == 200 else wire.Problem("X", "no", "")))

    def submit(self):
        return submit(self.link, self.file, REQUEST)

    @property
    def status(self):
        return job_files.read_status(self.link.env.folder)


def test_a_lost_answer_repeats_the_commit_alone_and_returns_the_receipt(tmp_path):
    controller = Controller(tmp_path, "lost", 503, 200)
    assert controller.submit().receipt == "r"
    assert controller.paths == [wire.BLOBS, wire.COMMIT, wire.COMMIT, wire.COMMIT]
    assert controller.lines[-1] == "round 7: committed 48 tokens, sent 0 bytes (again)"
    assert controller.status.handing_in == controller.clock.t, "no more time is needed"


def test_a_refused_contribution_is_dropped_at_once(tmp_path):
    controller = Controller(tmp_path, 409)
    assert controller.submit() is None
    assert controller.clock.slept == [] and "the contribution is dropped" in controller.lines[-1]


def test_a_controller_that_stays_away_costs_the_contribution_after_the_outage(tmp_path):
    controller = Controller(tmp_path, "lost")
    told = []
    sleep = controller.clock.sleep
    controller.clock.sleep = lambda seconds: (told.append(controller.status), sleep(seconds))
    assert controller.submit() is None
    assert 60.0 <= controller.clock.t - 1000.0 < 66.0
    assert {(status.handing_in, status.reason) for status in told} == {(1060.0, NO_ANSWER)}
    assert [line for line in controller.lines if NO_ANSWER in line] == controller.lines[:1]
    assert "the contribution is dropped" in controller.lines[-1]


def test_what_a_retry_does_not_heal_is_raised(tmp_path):
    controller = Controller(tmp_path, 401)
    with pytest.raises(AuthError):
        controller.submit()
    assert controller.clock.slept == []
