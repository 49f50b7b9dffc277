"""The agent's loop against a controller in memory, with a clock that never waits and jobs that are not there."""

from __future__ import annotations

import itertools
import json
import signal
import stat

import httpx
import pytest

from agent import job_files
from agent.http.client import Control
from agent.job_files import JobStatus
from agent.job_supervisor import TERMINATE_S
from agent.join import Edges, JoinOptions, Stop, run
from agent.launcher import TERMINATION_SIGNAL
from agent.lifecycle import (
    BROKEN_S,
    DRAIN_S,
    NEXT,
    STEADY_S,
    AgentView,
    Event,
    State,
    backoff_s,
    beat_s,
    failures_now,
    next_event,
    retry_s,
)
from curtail import wire
from curtail.errors import AuthError, Refused, Unreachable, UsageError
from curtail.system.mdns import AnnouncedController
from curtail.system.systemd import Notifier


class World:
    """Clock, controller and machine in one; `at(t, what)` makes something happen at a time."""

    def __init__(self):
        self.t = 100.0
        self.plan = []
        self.granted, self.valid_s, self.reason, self.finished = False, 15.0, "MCI 130 is not below 100 g/kWh", False
        self.chance = 0.0
        self.up, self.known, self.stale = True, {"good"}, False
        self.tokens, self.crew = {"ct0.t.good"}, None
        self.hold_s = 0.0
        self.beats, self.left, self.joins = [], [], []
        self.keyed, self.renewed, self.next_credential = False, [], None  # is the key known here?
        self.jobs, self.lines = [], []
        self.on_job = lambda job: job.says("train")
        self.stop = Stop()
        self.notifier = Notifier()

    # a clock
    def wall(self):
        return self.t

    def monotonic(self):
        return self.t

    def sleep(self, seconds):
        self.t += seconds
        assert self.t < 2000, "the agent never ends"
        while self.plan and self.plan[0][0] <= self.t:
            self.plan.pop(0)[1]()

    def at(self, after, what):
        self.plan.append((100.0 + after, what))
        self.plan.sort(key=lambda entry: entry[0])

    def set(self, **values):
        for name, value in values.items():
            assert hasattr(self, name)
            setattr(self, name, value)

    # a controller
    def handle(self, request):
        if not self.up:
            raise httpx.ConnectError("down", request=request)
        if request.url.path == wire.JOIN:
            join = wire.decode(wire.JoinRequest, request.content)
            self.joins.append(join)
            if join.token not in self.tokens:
                return problem(401, "the join token is not known here")
            self.known.add(f"c{len(self.joins)}")
            return answer(wire.JoinReply(f"c{len(self.joins)}", len(self.joins), 2.0, "run1"))
        if request.url.path == wire.CREDENTIAL:
            self.renewed.append(request)
            if not self.keyed:
                return problem(401, "no machine with this key joined here")
            self.known = {f"r{len(self.renewed)}"}
            return answer(wire.JoinReply(f"r{len(self.renewed)}", 7, 2.0, "run1"))
        if request.headers.get("authorization", "")[7:] not in self.known:
            return problem(401, "the credential is not known here")
        if self.stale:
            return problem(409, "fencing token 1 is out of date")
        if request.url.path == wire.LEAVE:
            self.left.append(wire.decode(wire.LeaveRequest, request.content))
            return answer(wire.Ack(True))
        beat = wire.decode(wire.Heartbeat, request.content)
        self.beats.append((self.t, beat))
        valid = self.valid_s if self.granted else 0.0
        following, self.next_credential = self.next_credential, None
        return answer(wire.HeartbeatReply(self.granted, valid, self.reason, self.finished, 2.0, "LOCAL", self.crew,
                                          credential=following, hold_s=self.hold_s))  # fmt: skip

    # a machine
    def spawn(self, argv, env, cwd, log):
        job = FakeJob(self, cwd, env)
        self.jobs.append(job)
        self.on_job(job)
        return job

    def run(self, home, **options):
        values = {"url": "http://127.0.0.1:1", "site": "A", "region": "north", "token": "ct0.t.good", "ranks": 1}
        http = httpx.Client(transport=httpx.MockTransport(self.handle), base_url="http://127.0.0.1:1")
        edges = Edges(
            clock=self,
            spawn=self.spawn,
            open_control=lambda url, trust: Control(http),
            find=lambda _: AnnouncedController("c", "http://127.0.0.1:1", "run1"),
            environment={},
            local_address=lambda url: "10.0.0.5",
            say=self.lines.append,
            notifier=self.notifier,
            chance=lambda: self.chance,
        )
        return run(JoinOptions(**(values | {"home": home} | options)), edges, self.stop)

    def phases(self):
        seen = [beat.phase for _, beat in self.beats]
        return [phase for i, phase in enumerate(seen) if i == 0 or seen[i - 1] != phase]


class FakeJob:
    """Drains when told, after `drain_s`; None: never."""

    pid = 1

    def __init__(self, world, folder, env):
        self.world, self.folder, self.env = world, folder, env
        self.code, self.signals, self.drain_s, self.told = None, [], 1.0, None
        self.dies_of = TERMINATION_SIGNAL

    def says(self, phase, reason="", code=None):
        job_files.write_status(self.folder, JobStatus(phase, 1, 1, 2.0, 3.0, reason, code))

    def poll(self):
        if self.code is None and job_files.must_drain(self.orders(), self.world.t):
            self.told = self.world.t if self.told is None else self.told
            if self.drain_s is not None and self.world.t - self.told >= self.drain_s:
                self.code = 0
        return self.code

    def orders(self):
        return job_files.read_orders(self.folder)

    def signal_group(self, number):
        self.signals.append(number)
        if self.code is None and number in (self.dies_of, signal.SIGKILL):
            self.code = -number


def answer(message):
    return httpx.Response(200, content=wire.encode(message))


def problem(status, message):
    return httpx.Response(status, content=wire.encode(wire.Problem("X", message, "")))


@pytest.fixture
def world():
    return World()


def interrupt(world, number=signal.SIGTERM):
    return lambda: world.stop.ask(number)


def test_a_window_is_one_job_from_permit_to_drain(world, tmp_path):
    world.on_job = lambda job: job.says("start")
    world.at(15, lambda: world.jobs[0].says("train"))
    world.at(10, lambda: world.set(granted=True, reason="MCI 60 is below 100 g/kWh"))
    world.at(30, lambda: world.set(granted=False, reason="MCI 120 is not below 100 g/kWh"))
    world.at(40, lambda: world.set(finished=True))
    assert world.run(tmp_path) == 0
    assert len(world.jobs) == 1 and world.jobs[0].code == 0
    assert world.phases() == ["paused", "start", "train", "drain", "paused"]
    assert world.left[0].reason == "the run is finished"
    assert "site A: training (MCI 60 is below 100 g/kWh)" in world.lines
    assert "site A: draining (MCI 120 is not below 100 g/kWh)" in world.lines
    assert world.jobs[0].env["CURTAIL_FENCE"] == "1" and "CURTAIL_TOKEN" not in world.jobs[0].env


def hold(world, seconds=300.0):
    def begin():
        world.set(granted=False, hold_s=seconds, reason="MCI 110 is not below 100 g/kWh; holding for 300 s")
        world.at(world.t - 100.0 + 3.0, lambda: world.jobs[0].says("hold"))

    return begin


def test_a_gap_that_is_held_keeps_the_job_which_goes_on_without_a_start(world, tmp_path):
    world.granted = True
    world.at(10, hold(world))
    world.at(30, lambda: (world.set(granted=True, hold_s=0.0, reason="MCI 60"), world.jobs[0].says("train")))
    world.at(40, interrupt(world))
    assert world.run(tmp_path) == 0
    assert len(world.jobs) == 1 and world.jobs[0].told >= 140
    assert world.phases()[:5] == ["paused", "train", "hold", "train", "drain"]
    assert any("holding the weights (MCI 110" in line for line in world.lines)


def test_in_a_hold_the_job_is_told_not_to_train_and_not_to_drain(world, tmp_path):
    world.granted = True
    world.at(10, hold(world))
    world.at(20, lambda: said.append((job_files.must_hold(world.jobs[0].orders(), world.t), world.jobs[0].told)))
    world.at(21, interrupt(world))
    said = []
    world.run(tmp_path)
    assert said == [("MCI 110 is not below 100 g/kWh; holding for 300 s", None)]


@pytest.mark.parametrize("gone", [False, True], ids=["refused", "unreachable"])
def test_a_hold_that_ends_ungranted_drains_the_job(world, tmp_path, gone):
    world.granted = True
    world.at(10, hold(world, 30.0))
    world.at(20, lambda: world.set(up=False) if gone else world.set(hold_s=0.0, reason="MCI 300"))
    world.at(80, lambda: world.set(up=True))
    world.at(90, interrupt(world))
    world.run(tmp_path)
    assert len(world.jobs) == 1 and world.jobs[0].code == 0
    assert (145 if gone else 120) <= world.jobs[0].told <= (151 if gone else 123)


def test_an_agent_that_is_stopped_does_not_wait_for_the_end_of_a_hold(world, tmp_path):
    world.granted = True
    world.at(10, hold(world))
    world.at(20, interrupt(world))
    assert world.run(tmp_path) == 0 and world.jobs[0].told <= 121


def test_a_change_of_phase_is_reported_at_once(world, tmp_path):
    world.granted = True
    world.at(5.1, lambda: world.jobs[0].says("sync"))
    world.at(8, interrupt(world))
    world.run(tmp_path)
    first = next(t for t, beat in world.beats if beat.phase == "sync")
    assert first - 105.1 <= 0.41


def test_the_heartbeat_names_the_job_that_is_alive(world, tmp_path):
    world.granted = True
    world.at(8, interrupt(world))
    world.run(tmp_path)
    assert {beat.job for _, beat in world.beats if beat.phase == "train"} == {world.jobs[0].env["CURTAIL_JOB"]}
    assert world.beats[0][1].job is None


def test_a_short_outage_does_not_touch_the_job(world, tmp_path):
    world.granted = True
    world.at(5, lambda: world.set(up=False))
    world.at(12, lambda: world.set(up=True))
    world.at(20, interrupt(world))
    assert world.run(tmp_path) == 0
    assert len(world.jobs) == 1 and world.jobs[0].told >= 120
    assert len([line for line in world.lines if "retrying" in line]) == 1
    assert "site A: the controller answers again" in world.lines


def test_a_long_outage_ends_the_job_with_its_permit(world, tmp_path):
    world.granted = True
    world.at(5, lambda: world.set(up=False))
    world.at(60, lambda: world.set(up=True))
    world.at(80, interrupt(world))
    world.run(tmp_path)
    assert 115 < world.jobs[0].told <= 121
    assert len(world.jobs) == 2, "a new window begins when the controller is back"
    assert any("draining (the permit expired" in line for line in world.lines)


def test_retries_are_never_more_than_a_heartbeat_or_five_seconds_apart():
    assert [retry_s(n, 9.0) for n in range(1, 6)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert [retry_s(n, 2.0) for n in range(1, 4)] == [1.0, 2.0, 2.0]
    assert retry_s(1, 0.1) == retry_s(5, 0.1) == 0.1


def test_a_thousand_agents_that_lost_the_controller_at_one_moment_do_not_come_back_at_one_moment():
    chances = [n / 1000 for n in range(1000)]
    for failures in (1, 2, 5):
        pauses = [retry_s(failures, 2.0, chance) for chance in chances]
        longest = retry_s(failures, 2.0)
        assert max(pauses) == longest and min(pauses) >= longest / 2
        crowd = max(sum(start <= pause < start + 0.05 for pause in pauses) for start in pauses)
        assert crowd <= 110, "in no twentieth of a second more than a ninth of them"
    beats = [beat_s(2.0, chance) for chance in chances]
    assert max(beats) == 2.0 and 1.8 <= min(beats) < 1.81, "never later than the controller expects"


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 2.0), (1.0, 1.8)])
def test_an_agent_spreads_its_heartbeats_by_chance(world, tmp_path, chance, pause):
    world.chance = chance
    world.at(30.0, interrupt(world))
    world.run(tmp_path)
    times = [at for at, _ in world.beats if 105.0 < at < 125.0]
    assert len(times) >= 9
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([pause] * (len(times) - 1))


def test_a_job_that_does_not_drain_is_ended_first_politely(world, tmp_path):
    world.granted = True

    def stubborn(job):
        job.says("train")
        job.drain_s, job.dies_of = None, None

    world.on_job = stubborn
    world.at(10, lambda: world.set(granted=False))
    world.at(10 + DRAIN_S + TERMINATE_S + 10, interrupt(world))
    assert world.run(tmp_path) == 0
    assert world.jobs[0].signals[:2] == [TERMINATION_SIGNAL, signal.SIGKILL]
    assert not any("failed" in line for line in world.lines)


def test_a_failing_job_is_started_again_ever_more_slowly(world, tmp_path):
    world.granted = True

    def failing(job):
        job.says("start", "the manifest is damaged", 1)
        job.code = 1

    world.on_job = failing
    world.at(20, interrupt(world))
    world.run(tmp_path)
    assert len(world.jobs) == 4, "after 0, 2, 6 and 14 s"
    assert "the manifest is damaged" in world.beats[-1][1].note
    assert [backoff_s(n) for n in (0, 1, 2, 3, 10)] == [0.0, 2.0, 4.0, 8.0, 60.0]


def test_a_job_that_trained_for_a_minute_and_was_struck_starts_again_at_once_and_one_that_had_just_begun_does_not():
    assert failures_now(3, trained_s=STEADY_S) == 0
    assert failures_now(0, trained_s=STEADY_S - 1) == 1 and failures_now(3, trained_s=0.0) == 4


def test_a_job_that_leaves_without_training_is_not_restarted_in_a_loop(world, tmp_path):
    world.granted = True

    def leaving(job):
        job.says("start", "no permit", 0)
        job.code = 0

    world.on_job = leaving
    world.at(7, interrupt(world))
    world.run(tmp_path)
    assert len(world.jobs) <= 3


def test_a_program_that_cannot_start_is_a_failed_job(world, tmp_path):
    world.granted = True

    def spawn(*_):
        raise Refused("cannot start python")

    world.spawn = spawn
    world.at(5, interrupt(world))
    assert world.run(tmp_path) == 0
    assert any("cannot start python" in beat.note for _, beat in world.beats)


def test_a_credential_is_kept_and_used_again(world, tmp_path):
    world.at(1, interrupt(world))
    world.run(tmp_path)
    assert (tmp_path / "credential").read_text() == "c1"
    assert stat.S_IMODE((tmp_path / "credential").stat().st_mode) == 0o600
    agent = json.loads((tmp_path / "identity.json").read_text())["agent"]
    world.stop = Stop()
    world.at(4, interrupt(world))
    world.run(tmp_path, token=None)
    assert len(world.joins) == 1 and world.beats[-1][1].agent == agent == world.joins[0].agent


def test_without_token_and_credential_the_agent_says_what_to_do(world, tmp_path):
    with pytest.raises(AuthError, match="CURTAIL_TOKEN"):
        world.run(tmp_path, token=None)


def test_a_refused_credential_is_replaced_with_the_token(world, tmp_path):
    world.at(1, interrupt(world))
    world.run(tmp_path)
    world.known.clear()
    with pytest.raises(AuthError, match=r"refuses this agent's credential.*CURTAIL_TOKEN"):
        world.run(tmp_path, token=None)
    world.stop = Stop()
    world.at(4, interrupt(world))
    assert world.run(tmp_path) == 0
    assert len(world.joins) == 2


def test_a_credential_that_is_refused_while_training_is_replaced_after_a_drain(world, tmp_path):
    world.granted = True
    world.at(5, lambda: world.known.clear())
    world.at(30, interrupt(world))
    assert world.run(tmp_path) == 0
    assert len(world.joins) == 2 and world.jobs[0].code == 0
    assert world.jobs[-1].env["CURTAIL_FENCE"] == "2"


def test_a_wrong_token_is_an_error_at_once(world, tmp_path):
    with pytest.raises(AuthError, match="not known"):
        world.run(tmp_path, token="ct0.t.other")


def test_another_agent_of_the_site_ends_this_one(world, tmp_path):
    world.granted = True
    world.at(5, lambda: world.set(stale=True))
    with pytest.raises(Refused, match="another agent has replaced this one at site A"):
        world.run(tmp_path)
    assert world.jobs[0].code == 0 and not world.left


def test_a_first_contact_that_fails_is_an_error(world, tmp_path):
    world.up = False
    with pytest.raises(Unreachable) as caught:
        world.run(tmp_path)
    assert caught.value.exit_code == 5 and world.t == 100.0


def test_an_agent_that_joined_before_waits_for_a_controller_that_is_down_at_its_start(world, tmp_path):
    world.at(10, interrupt(world))
    world.run(tmp_path)
    joins, world.stop, world.up, world.lines[:] = len(world.joins), Stop(), False, []
    world.plan.clear()
    begin = world.t
    world.at(begin - 100.0 + 60, lambda: world.set(up=True, granted=True))
    world.at(begin - 100.0 + 80, interrupt(world))
    assert world.run(tmp_path, token=None) == 0
    assert world.lines[0].startswith("site A: nobody answers at http://127.0.0.1:1: check the address")
    assert world.lines[0].endswith("; retrying") and "joined the run run1" in world.lines[1]
    assert sum("nobody answers" in line for line in world.lines) == 1, "it is told once"
    assert len(world.jobs) == 1 and len(world.joins) == joins, "it is the machine that it was, without a token"
    first = next(t for t, _ in world.beats if t > begin)
    assert 60 <= first - begin <= 63


def test_an_agent_that_waits_for_its_first_word_can_be_stopped(world, tmp_path):
    world.at(10, interrupt(world))
    world.run(tmp_path)
    world.stop, world.up = Stop(), False
    world.at(world.t - 100.0 + 30, interrupt(world, signal.SIGINT))
    assert world.run(tmp_path, token=None) == 130
    assert any("could not tell the controller" in line for line in world.lines)


@pytest.mark.parametrize("token", [None, "ct0.t.good"])
def test_a_credential_that_is_refused_after_the_wait_is_replaced_by_the_token_or_an_error(world, tmp_path, token):
    world.at(10, interrupt(world))
    world.run(tmp_path)
    world.stop, world.up, world.known = Stop(), False, set()
    world.at(world.t - 100.0 + 30, lambda: world.set(up=True))
    world.at(world.t - 100.0 + 60, interrupt(world))
    if token is None:
        with pytest.raises(AuthError, match="give a join token"):
            world.run(tmp_path, token=None)
    else:
        assert world.run(tmp_path, token=token) == 0 and len(world.joins) == 2


def test_an_agent_of_another_site_in_the_same_folder_does_not_wait(world, tmp_path):
    world.at(10, interrupt(world))
    world.run(tmp_path)
    world.stop, world.up = Stop(), False
    with pytest.raises(Unreachable):
        world.run(tmp_path, site="B")


def test_the_controller_is_searched_when_no_address_is_given(world, tmp_path):
    world.at(1, interrupt(world))
    assert world.run(tmp_path, url=None) == 0


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_drains_the_job_and_leaves(world, tmp_path, number, code):
    world.granted = True
    world.at(5, interrupt(world, number))
    assert world.run(tmp_path) == code
    assert world.jobs[0].code == 0 and world.left[0].reason == "the agent was stopped"
    assert world.jobs[0].signals == [signal.SIGKILL], "only what is left of the group after its end"


def test_a_second_signal_ends_at_once(world, tmp_path):
    world.granted = True
    world.at(5, interrupt(world))
    world.at(5.2, interrupt(world, signal.SIGINT))
    with pytest.raises(SystemExit) as caught:
        world.run(tmp_path)
    assert caught.value.code == 130 and world.jobs[0].code == -signal.SIGKILL


def test_signals_of_one_event_count_once_and_ctrl_c_always():
    stop = Stop()
    stop.on_signal(signal.SIGHUP, 10.0)
    stop.on_signal(signal.SIGTERM, 10.9)
    assert stop.number == signal.SIGHUP
    with pytest.raises(SystemExit):
        stop.on_signal(signal.SIGTERM, 11.1)
    stop = Stop()
    stop.on_signal(signal.SIGINT, 10.0)
    with pytest.raises(SystemExit) as caught:
        stop.on_signal(signal.SIGINT, 10.1)
    assert caught.value.code == 130


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_stops_the_agent_unless_it_was_ignored_at_the_start(world, tmp_path, ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        world.at(5, lambda: signal.raise_signal(signal.SIGHUP))
        world.at(30, interrupt(world))
        assert world.run(tmp_path) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert world.stop.number == (signal.SIGTERM if ignored else signal.SIGHUP)


def test_two_agents_do_not_share_a_folder(world, tmp_path):
    def second():
        with pytest.raises(Refused, match="another agent is running in"):
            World().run(tmp_path)
        world.stop.ask(signal.SIGTERM)

    world.at(1, second)
    assert world.run(tmp_path) == 0


def test_leaving_while_the_controller_is_down_still_ends(world, tmp_path):
    world.at(3, lambda: world.set(up=False))
    world.at(5, interrupt(world))
    assert world.run(tmp_path) == 0
    assert any("could not tell the controller" in line for line in world.lines)


def test_only_the_newest_job_folders_stay(world, tmp_path):
    for number in range(9):
        (tmp_path / "jobs" / f"old{number}").mkdir(parents=True)
    world.granted = True
    world.at(3, interrupt(world))
    world.run(tmp_path)
    assert len(list((tmp_path / "jobs").iterdir())) == 6


@pytest.mark.parametrize("changes", [{"site": ""}, {"site": "a/b"}, {"region": "no rth"}])
def test_a_name_that_is_no_name_is_refused(world, tmp_path, changes):
    with pytest.raises(UsageError):
        world.run(tmp_path, **changes)


def test_no_state_trains_without_a_live_permit():
    for state in (State.STARTING, State.TRAINING):
        assert next_event(AgentView(state, 10.0, 0.0, permit_until=9.9)) is Event.PERMIT_ENDED
        assert next_event(AgentView(state, 10.0, 0.0)) is Event.PERMIT_ENDED
    assert next_event(AgentView(State.IDLE, 10.0, 0.0, permit_until=9.9)) is None
    assert next_event(AgentView(State.BACKOFF, 10.0, 0.0, permit_until=99.0, backoff_until=11.0)) is None


def test_decide_knows_every_state():
    for state in State:
        for stopping in (False, True):
            event = next_event(AgentView(state, 1e9, 0.0, 2e9, None, "train", stopping))
            assert event is None or (state, event) in NEXT
    assert next_event(AgentView(State.LEFT, 0.0, 0.0, stopping=True)) is None


# -- a site of several machines ------------------------------------------------


def crew(name, rank=0, size=2, broken=False):
    return wire.Crew(name, rank, size, "10.0.0.5:29400", broken)


def test_a_machine_of_two_tells_where_it_is_reached_and_starts_its_part_of_the_job(world, tmp_path):
    world.granted, world.crew = True, crew("x", rank=1)
    world.at(5, interrupt(world))
    assert world.run(tmp_path, machines=2) == 0
    (join,) = world.joins
    assert (join.machines, join.address, join.port) == (2, "10.0.0.5", 29400)
    assert "site A: starting a job as machine 2 of 2 (MCI 130 is not below 100 g/kWh)" in world.lines
    assert {(b.crew, b.crew_rank, b.crew_size) for _, b in world.beats if b.job is not None} == {("x", 1, 2)}
    assert world.beats[0][1].crew == ""


def test_a_site_of_one_machine_says_nothing_of_addresses_and_crews(world, tmp_path):
    world.granted = True
    world.at(5, interrupt(world))
    world.run(tmp_path)
    assert (world.joins[0].machines, world.joins[0].address, world.joins[0].port) == (1, "", 0)
    assert {(beat.crew, beat.crew_rank, beat.crew_size) for _, beat in world.beats} == {("", 0, 1)}


def test_a_machine_of_two_does_not_start_without_a_crew_nor_twice_with_the_same(world, tmp_path):
    world.granted = True
    world.at(6, lambda: world.set(crew=crew("x")))

    def ends():
        world.jobs[0].code = 1

    world.at(10, ends)
    world.at(40, lambda: world.set(crew=crew("y")))
    world.at(50, interrupt(world))
    world.run(tmp_path, machines=2)
    assert [job.env["CURTAIL_JOB"] for job in world.jobs] == [
        name for name in dict.fromkeys(beat.job for _, beat in world.beats) if name
    ]
    assert len(world.jobs) == 2
    over = [beat.crew for t, beat in world.beats if 112 < t < 140 and beat.job is None]
    assert over and set(over) == {"x"}, "the controller learns that its job is over"


def test_an_agent_that_starts_again_still_says_which_crew_it_was_in(world, tmp_path):
    world.granted, world.crew = True, crew("x")
    world.at(3, interrupt(world))
    world.run(tmp_path, machines=2)
    world.stop = Stop()
    world.at(world.t - 95, interrupt(world))
    world.run(tmp_path, machines=2, token=None)
    assert (world.beats[-1][1].crew, world.beats[-1][1].job) == ("x", None) and len(world.jobs) == 1


def test_a_larger_crew_is_joined_after_a_drain_in_order(world, tmp_path):
    world.granted, world.crew = True, crew("x", size=1)

    def slow(job):
        job.says("train")
        job.drain_s = 20.0

    world.on_job = slow
    world.at(10, lambda: world.set(crew=crew("y")))
    world.at(40, interrupt(world))
    assert world.run(tmp_path, machines=2) == 0
    assert [job.code for job in world.jobs] == [0, 0] and TERMINATION_SIGNAL not in world.jobs[0].signals
    assert any("draining (the site's machines have changed" in line for line in world.lines)
    assert world.beats[-1][1].crew == "y"


def test_a_job_that_lost_a_machine_is_ended_in_seconds_and_the_next_starts_without_a_pause(world, tmp_path):
    world.granted, world.crew = True, crew("x")

    def stuck(job):
        job.says("train")
        job.drain_s = None

    world.on_job = stuck
    world.at(10, lambda: world.set(crew=crew("y", size=1, broken=True)))
    world.at(30, interrupt(world))
    world.run(tmp_path, machines=2)
    first = world.jobs[0]
    assert first.signals[0] == TERMINATION_SIGNAL and len(world.jobs) == 2
    began = next(t for t, beat in world.beats if beat.crew == "y")
    assert began <= 112.5 + BROKEN_S, "at the next heartbeat, and no pause after"
    assert any("a machine of the site is gone" in line for line in world.lines)
    assert not any("waiting 2 s" in line for line in world.lines)


def test_another_number_of_machines_or_another_address_is_told_at_the_next_start(world, tmp_path):
    world.at(1, interrupt(world))
    world.run(tmp_path)
    for options, told in (
        ({"machines": 2}, (2, "10.0.0.5", 29400)),
        ({"machines": 2, "address": "one.lan", "rendezvous_port": 29500}, (2, "one.lan", 29500)),
    ):
        world.stop = Stop()
        with pytest.raises(AuthError, match="another --machines, --address or port"):
            world.run(tmp_path, **options, token=None)
        world.at(world.t - 99, interrupt(world))
        assert world.run(tmp_path, **options) == 0
        last = world.joins[-1]
        assert (last.machines, last.address, last.port) == told
    count = len(world.joins)
    world.stop = Stop()
    world.at(world.t - 99, interrupt(world))
    world.run(tmp_path, machines=2, address="one.lan", rendezvous_port=29500, token=None)
    assert len(world.joins) == count, "nothing changed: the credential is enough"


def test_a_change_of_the_crew_ends_a_job_and_never_one_that_hands_in():
    training = AgentView(State.TRAINING, 10.0, 0.0, 20.0, crew_changed=True)
    assert next_event(training) is Event.CREW_CHANGED
    draining = AgentView(State.DRAINING, 10.0, 4.0, crew_changed=True)
    assert next_event(draining) is None
    broken = AgentView(State.DRAINING, 10.0, 4.0, crew_changed=True, crew_broken=True)
    assert next_event(broken) is Event.DRAIN_OVERDUE
    hands_in = AgentView(State.DRAINING, 10.0, 4.0, handing_in=9.0, crew_changed=True, crew_broken=True)
    assert next_event(hands_in) is None
    failed = AgentView(State.DRAINING, 10.0, 4.0, job_exit=1, crew_changed=True, crew_broken=True)
    assert next_event(failed) is Event.JOB_ENDED, "the next job has another crew"


def test_systemd_hears_that_the_agent_joined_and_that_its_loop_comes_around_also_in_an_outage(world, tmp_path):
    sent = []
    world.notifier = Notifier("/run/x", 10.0, lambda _, message: sent.append((world.t, message)))
    world.at(20, lambda: world.set(up=False))
    world.at(100, interrupt(world))
    world.run(tmp_path)
    assert sent[0] == (100.0, b"READY=1") and sent[-1][1] == b"STOPPING=1"
    pings = [t for t, message in sent if message == b"WATCHDOG=1"]
    assert len(pings) >= 9 and all(10.0 <= b - a < 16.0 for a, b in itertools.pairwise(pings))
    sent.clear()
    with pytest.raises(AuthError):
        world.set(up=True)
        world.run(tmp_path / "other", token="ct0.t.wrong")
    assert b"READY=1" not in [message for _, message in sent]


# -- credentials that end -----------------------------------------------------------


def test_a_new_credential_is_on_disk_before_it_is_used_and_the_job_goes_on(world, tmp_path):
    world.granted = True

    def replace():
        world.next_credential = "fresh"
        world.known |= {"fresh"}

    def forget():
        assert (tmp_path / "credential").read_text() == "fresh"
        world.known -= {"c1"}

    world.at(5, replace)
    world.at(15, forget)
    world.at(30, interrupt(world))
    assert world.run(tmp_path) == 0
    assert len(world.jobs) == 1 and not world.renewed
    assert stat.S_IMODE((tmp_path / "credential").stat().st_mode) == 0o600


def test_a_credential_that_ended_is_replaced_by_the_key_while_the_job_trains_on(world, tmp_path):
    world.granted = world.keyed = True
    world.at(10, lambda: world.set(known=set()))
    world.at(30, interrupt(world))
    assert world.run(tmp_path, token=None if (tmp_path / "credential").exists() else "ct0.t.good") == 0
    assert len(world.joins) == 1 and len(world.renewed) == 1 and len(world.jobs) == 1
    assert (tmp_path / "credential").read_text() == "r1"
    assert "curtail-signature" in world.renewed[0].headers
    assert "authorization" not in world.renewed[0].headers, "the old credential is not shown again"


def test_an_agent_that_was_off_for_days_comes_back_by_its_key_without_a_token(world, tmp_path):
    world.at(1, interrupt(world))
    world.run(tmp_path)
    world.known, world.keyed, world.stop = set(), True, Stop()
    world.at(world.t - 100.0 + 5, interrupt(world))
    assert world.run(tmp_path, token=None) == 0
    assert len(world.joins) == 1 and world.beats[-1][1].fence == 7


def test_a_machine_that_was_removed_is_told_to_join_anew_and_does_not_ask_for_ever(world, tmp_path):
    world.at(1, interrupt(world))
    world.run(tmp_path)
    world.known, world.stop = set(), Stop()
    with pytest.raises(AuthError, match="give a join token"):
        world.run(tmp_path, token=None)
    assert len(world.renewed) == 1


def test_a_mistyped_token_is_noticed_before_anybody_is_asked(world, tmp_path):
    world.up = False
    with pytest.raises(AuthError, match="this is not a token"):
        world.run(tmp_path, token="token")


def test_an_agent_keeps_its_key_for_its_owner_only(world, tmp_path):
    for _ in range(2):
        world.stop = Stop()
        world.at(world.t - 100.0 + 1, interrupt(world))
        world.run(tmp_path, machines=1)
        (tmp_path / "credential").unlink()
    assert len({join.key for join in world.joins}) == 1 and world.joins[0].key
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
