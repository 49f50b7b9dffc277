"""Power loss at every durable write of an agent: it comes back by itself, as the machine that it was.

A real controller behind its HTTP face, and one machine that joins with a token of
one use, is paused and resumed by commands, gets new credentials, and joins anew
by its key. At each point of each durable write the power goes; what would then be
on disk is where the next agent starts. It gets no token any more once the
controller had let the machine in.
"""

import contextlib
import importlib.util
import signal
from pathlib import Path

import httpx
import pytest
from asgi import AsgiTransport

from agent import controller_trust, job_files
from agent.controller_trust import ControllerTrust, known_authority
from agent.home import Home
from agent.hooks import Commands
from agent.http.client import Control
from agent.job_files import JobStatus
from agent.join import Edges, JoinOptions, Stop, run
from controller.auth import credentials, tokens
from controller.http import rate_limit
from controller.http.app import ServerIdentity, create_app
from controller.service import sites
from controller.store import database
from curtail import wire
from curtail.errors import AuthError
from curtail.security.tls import pin_of
from curtail.system.disk import SystemDisk

_spec = importlib.util.spec_from_file_location("power_loss", Path(__file__).with_name("power_loss.py"))
power_loss = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(power_loss)

URL = "https://127.0.0.1:1"

WRITES = [
    ("folder", "AGENT_HOME"),
    ("replace", "CA"),
    ("replace", "IDENTITY"),  # who it is
    ("replace", "KEY"),
    ("replace", "IDENTITY"),  # what it joined
    ("replace", "CREDENTIAL"),
    ("replace", "HOOKS"),  # on_resume begins
    ("replace", "HOOKS"),  # and has succeeded
    ("replace", "CREDENTIAL"),  # the first has grown old
    ("replace", "HOOKS"),  # on_pause begins
    ("replace", "IDENTITY"),  # by the key alone, after all credentials have expired
    ("replace", "CREDENTIAL"),
    ("replace", "IDENTITY"),  # anew, after an operator forgot the machine
    ("replace", "CREDENTIAL"),
]
"""The durable writes of `Site.life`, in order."""

POINTS = power_loss.points(WRITES)

UNREAD = ("home/jobs", "home/hooks/")
"""Each job has a folder of its own, and logs are for people."""


class Ended:
    """A command that succeeded at once."""

    pid = 2

    def poll(self):
        return 0

    def signal_group(self, number):
        raise AssertionError("it has ended")


class FakeJob:
    """Trains until it is told to drain."""

    pid = 1

    def __init__(self, folder):
        self.folder = folder
        job_files.write_status(folder, JobStatus("train", 1, 1, 2.0, 3.0))

    def poll(self):
        return 0 if job_files.must_drain(job_files.read_orders(self.folder), 0.0) else None

    def signal_group(self, number):
        """It has drained, or it is gone with the power."""


class Site:
    """One machine and its controller; clock of both."""

    def __init__(self, world, authority):
        self.world, self.authority = world, authority
        self.pin = pin_of(authority)
        self.token = self.new_token()
        info = wire.RunInfo("run", "n", 1, "p", {}, "0" * 64, "t", 8, 100, 4, 4, "{}", "int8", False, 20, 600.0)
        self.app = create_app(
            world.service, world.uploads, info, lambda: None, ServerIdentity(authority, None, False), world.clock
        )
        self.plan, self.lines, self.trained, self.asleep = [], [], 0, False

    # a clock
    def wall(self):
        return self.world.clock.wall()

    def monotonic(self):
        return self.world.clock.monotonic()

    def sleep(self, seconds):
        self.world.clock.sleep(seconds)
        if self.monotonic() >= self.next_tick:
            self.next_tick = self.monotonic() + 1.0
            self.world.tick(0.0)
        assert self.monotonic() < self.end, "the agent never ends"
        while self.plan and self.plan[0][0] <= self.monotonic():
            self.plan.pop(0)[1]()

    # a machine
    def spawn(self, argv, env, cwd, log):
        if "CURTAIL_HOOK" in env:
            self.asleep = env["CURTAIL_HOOK"] == "on_pause"
            return Ended()
        assert not self.asleep, "a job starts on a machine that was paused and not resumed"
        self.trained += 1
        return FakeJob(cwd)

    def run(self, home, token, *plan):
        """The exit code of an agent during which things happen at these seconds from now; then it is stopped."""
        now = self.monotonic()
        self.next_tick, self.end = now, now + 200.0
        self.world.tick(0.0)
        self.plan = [(now + after, what) for after, what in plan]
        stop = Stop()
        self.plan.append((self.plan[-1][0] + 2.0, lambda: stop.ask(signal.SIGTERM)))
        http = httpx.Client(transport=AsgiTransport(self.app), base_url=URL)

        def opened(url, given):
            known_authority(url, given)
            return Control(http, clock=self)

        edges = Edges(
            clock=self, spawn=self.spawn, open_control=opened, environment={}, say=self.lines.append, chance=float
        )
        options = JoinOptions(URL, "a", "A", home, token, ranks=1, threads=1, hooks=Commands("pause", "resume"))
        with contextlib.closing(http):  # a machine without power closes its connections, too
            return run(options, edges, stop)

    def life(self, home):
        """Join, train, be paused; come again long after; be forgotten and join anew."""
        assert self.run(home, self.token, (9.0, lambda: self.dirty(True)), (12.0, lambda: None)) == 0
        self.world.clock.sleep(1000.0)
        assert self.run(home, None, (1.0, lambda: None)) == 0
        self.world.store.call(lambda tx: sites.forget(tx, "a", None))
        self.token = self.new_token()
        assert self.run(home, self.token, (1.0, lambda: None)) == 0

    def new_token(self):
        request, now = wire.TokenRequest("agent", "a", "", 1, None, "test"), self.world.clock.wall()
        return self.world.store.call(lambda tx: tokens.create(tx, request, self.pin, now)).token

    def dirty(self, yes):
        self.world.source.mci["A"] = 500.0 if yes else 50.0

    def machines(self):
        return self.world.store.call(lambda tx: tx.machines("a"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    from controller.auth.authority import ensure

    return ensure(tmp_path_factory.mktemp("tls"), [], 1_000_000.0, SystemDisk()).authority


@pytest.fixture
def make_site(world_class, authority, monkeypatch, tmp_path):
    """A function that makes a controller and a machine that it does not know yet."""
    for name, seconds in (("LIFE_S", 60.0), ("RENEW_AFTER_S", 7.0), ("OVERLAP_S", 10.0)):
        monkeypatch.setattr(credentials, name, seconds)
    for name in ("CONTROL", "HEARTBEATS", "STRANGERS"):
        monkeypatch.setattr(rate_limit, name, rate_limit.Rate(1e9, 1e9))
    monkeypatch.setattr(controller_trust, "fetch_authority", lambda url, pin: authority)
    # The controller keeps its power, so its disk need not be waited for.
    monkeypatch.setattr(database, "PRAGMAS", (*database.PRAGMAS, "synchronous = OFF"))
    worlds = []

    def make(name="controller"):
        (tmp_path / name).mkdir()
        worlds.append(world_class(tmp_path / name))
        worlds[-1].source.mci = {"A": 50.0}
        return Site(worlds[-1], authority)

    yield make
    for world in worlds:
        world.store.close()


def life_until(site, point, below):
    """The machine's life up to the point; what a power loss would leave there, by variant."""
    images = {}

    def at(reached):
        if reached == point:
            images.update(writes.power.cut_all(below.with_name(f"{below.name}-left"), UNREAD))
            raise power_loss.PowerCut

    below.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        writes = power_loss.Writes(patch.setattr, power_loss.PowerLoss(below), at)
        if point is None:
            site.life(below / "home")
        else:
            with pytest.raises(power_loss.PowerCut):
                site.life(below / "home")
    writes.power.close()
    return writes, images


def test_the_durable_writes_of_an_agent_are_these(make_site, tmp_path):
    site = make_site()
    writes, _ = life_until(site, None, tmp_path / "machine")
    assert writes.ops == [op for _, op in WRITES]
    assert writes.seen == POINTS
    assert site.trained == 1 and site.asleep


@pytest.mark.parametrize("point", POINTS)
def test_an_agent_that_lost_its_power_at_any_durable_write_comes_back_as_the_same_machine(make_site, tmp_path, point):
    site = make_site()
    _, images = life_until(site, point, tmp_path / "machine")
    comes_back(site, images.pop("missing"))
    for variant in images:
        site = make_site(variant)
        comes_back(site, life_until(site, point, tmp_path / f"machine-{variant}")[1][variant])


def comes_back(site, image):
    before = site.machines()
    site.dirty(False)
    site.world.clock.sleep(30.0)
    site.trained = 0
    home = image / "home"
    assert site.run(home, None if before else site.token, (8.0, lambda: None)) == 0
    after = site.machines()
    assert len(after) == 1 and site.trained == 1
    assert [(row.agent, row.key) for row in before] in ([], [(row.agent, row.key) for row in after])
    assert not list(home.glob(".*"))


MOVE = [("remove", "CREDENTIAL"), ("replace", "CA")]
"""The durable writes of an agent whose token names another controller than before."""


@pytest.mark.parametrize("point", power_loss.points(MOVE))
def test_a_power_loss_never_leaves_the_credential_of_one_controller_beside_the_authority_of_another(
    authority, monkeypatch, tmp_path, point
):
    home, images = tmp_path / "machine" / "home", {}
    home.mkdir(parents=True)
    (home / "ca.pem").write_text("the authority before")
    (home / "credential").write_text("the credential before")
    monkeypatch.setattr(controller_trust, "fetch_authority", lambda url, pin: authority)
    monkeypatch.setattr(controller_trust, "pin_of", lambda pem: "0" * 64 if "before" in pem else pin_of(pem))

    def at(reached):
        if reached == point:
            images.update(writes.power.cut_all(tmp_path / "left"))

    with pytest.MonkeyPatch.context() as patch:
        writes = power_loss.Writes(patch.setattr, power_loss.PowerLoss(home.parent), at)
        known_authority(URL, ControllerTrust(Home(home), SystemDisk(), credentials.new_token(pin_of(authority))))
    writes.power.close()
    assert writes.seen == power_loss.points(MOVE) and images
    for image in images.values():
        left = Home(image / "home")
        assert left.authority_file.read_text() == "the authority before" or left.credential() is None


def test_without_a_token_and_a_known_key_an_agent_says_what_it_needs(make_site, tmp_path):
    site = make_site()
    with pytest.raises(AuthError, match="no token was given") as caught:
        site.run(prepared(tmp_path, site), None, (1.0, lambda: None))
    assert "CURTAIL_TOKEN" in caught.value.remedy


def prepared(tmp_path, site):
    """The folder of an agent that pinned its controller and never joined."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "ca.pem").write_text(site.authority)
    return home
