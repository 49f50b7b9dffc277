"""Machines of a site follow its windows: requested with the lead, released after, adopted after a restart, capped."""

import os
import random
from dataclasses import replace
from math import inf

import pytest

from controller.auth import tokens
from controller.provision.calls import Poll, make_call
from controller.provision.driver import ProvisionError
from controller.provision.lifecycle import EXISTS, MachineState, Observed
from controller.provision.observations import Observations
from controller.provision.provisioner import Provisioner
from curtail import wire
from curtail.config import ProvisionSection, SiteSection
from curtail.errors import AuthError, NotFound, WireError
from curtail.grid.forecast import Forecast
from curtail.wire import TokenRequest

CLEAN, DIRTY = 50.0, 400.0
POLL_S = 2.0


class Provider:
    """A provisioner with a queue: machines wait `queue_s`, run, and end some time after they were released."""

    def __init__(self, clock, queue_s=4.0, drain_s=2.0):
        self.clock, self.queue_s, self.drain_s = clock, queue_s, drain_s
        self.made = []  # [machine, requested at, ends at or None, token]
        self.down, self.refuses = False, ""
        self.most = 0

    def _check(self):
        if self.down:
            raise ProvisionError("the provisioner cannot be reached")

    def alive(self):
        return [one for one in self.made if one[2] is None or self.clock.t < one[2]]

    def running(self, one):
        return self.clock.t - one[1] >= self.queue_s

    def observe(self):
        self._check()
        return [
            Observed(one[0], "running" if self.running(one) else "pending", "test", f"job{self.made.index(one)}")
            for one in self.alive()
        ]

    def ensure(self, request):
        self._check()
        if self.refuses:
            raise ProvisionError(self.refuses)
        for seen in self.observe():
            if seen.machine == request.machine:
                return seen
        self.made.append([request.machine, self.clock.t, None, request.token])
        numbers = [one[0] for one in self.alive()]
        assert len(numbers) == len(set(numbers)), "two jobs for one machine"
        self.most = max(self.most, len(numbers))
        return Observed(request.machine, "pending", "test", f"job{len(self.made) - 1}")

    def release(self, observed, grace_s, now):
        self._check()
        one = self.made[int(observed.native.removeprefix("job"))]
        if one[2] is None:
            one[2] = self.clock.t + (0.0 if now or not self.running(one) else self.drain_s)


class Inline:
    """Makes the calls at once; `crash` kills the controller before or after the next request or release."""

    def __init__(self, drivers):
        self.drivers, self.done, self.crash, self.dead = drivers, [], "", False

    def submit(self, site, call):
        if call is not None and self.crash == "before":
            self.dead = True
        if self.dead:
            return
        self.done.append(make_call(self.drivers[site], site, call))
        self.dead = call is not None and self.crash == "after"

    def results(self):
        found, self.done = self.done, []
        return found


class Signal:
    """Readings of region A from a list of (start, MCI), and their future if `forecast`."""

    def __init__(self, source, forecast):
        self.inner, self.points, self.forecasts = source, [(0.0, DIRTY)], forecast

    def reading(self, region, now):
        value = [mci for at, mci in self.points if at <= now][-1]
        self.inner.mci[region] = value if region == "A" else DIRTY
        return self.inner.reading(region, now)

    def forecast(self, region, now, horizon):
        return Forecast(region, tuple(self.points), inf) if self.forecasts and region == "A" else None

    def second(self, region, now):
        return None

    def ended(self, now):
        return False


class Elastic:
    """A controller whose site `one` in region A has machines of a provider; agents join when these have booted."""

    def __init__(self, world, forecast=True, provision=None, boot_s=3.0, **site):
        self.world, self.boot_s = world, boot_s
        values = {"provisioner": "command", "command": ("x",), "region": "A", "lead": 20.0, "shortest": 30.0,
                  "grace": 10.0, "boot_limit": 60.0, "longest": 10_000.0}  # fmt: skip
        section = SiteSection(**values | site)
        caps = replace(ProvisionSection(poll=POLL_S), **provision or {})
        policy = replace(world.config.policy, max_reading_age=1e9, min_window=0.0, start=1.0, stop=1.0, sync=1.0)
        world.config = replace(world.config, sites={"one": section}, provision=caps, policy=policy)
        world.source = Signal(world.source, forecast)
        self.provider = Provider(world.clock)
        self.start()

    def start(self):
        self.caller = Inline({"one": self.provider})

        def new_token(tx, site, region, seconds):
            return tokens.create(tx, TokenRequest("agent", site, region, 1, seconds, ""), None, self.world.clock.wall())

        def make(event):
            calls = Observations(self.caller, Poll(self.world.clock, self.world.config.provision.poll))
            return Provisioner(self.world.config, "run", calls, 1.0, "http://c", new_token, event)

        self.world.provisioning = make
        self.world.start()

    @property
    def now(self):
        return self.world.service.replay.now()

    def windows(self, *spans):
        """Clean windows (from, to), seconds from now."""
        now = self.now
        points = [(0.0, DIRTY)]
        for start, end in spans:
            points += [(now + start, CLEAN), (now + end, DIRTY)]
        self.world.source.points = points

    def tick(self, seconds=1.0):
        """A second passes; agents of machines that have booted join, report, and leave with their machines."""
        self.world.tick(seconds)
        t = self.world.clock.t
        ready = [one for one in self.provider.alive() if t - one[1] >= self.provider.queue_s + self.boot_s]
        known = self.world.service.fleet.find("one") is not None
        if ready and not known:
            self.world.join("one", "A", token=ready[-1][3] or "ct0.abc.secret")
        if ready and self.world.beat("one").granted:
            self.world.beat("one", "job", "train")
        elif known and not self.provider.alive():
            who = self.world.who("one")
            request = wire.LeaveRequest(who.agent, "one", who.fence, "stopped")
            self.world.store.call(lambda tx: self.world.service.leave(tx, who, request))

    def run(self, seconds, step=1.0):
        states = []
        for _ in range(round(seconds / step)):
            self.tick(step)
            states.append(self.state())
        return states

    def machine(self, number=0):
        return self.world.service.elastic.machines()[number]

    def state(self, number=0):
        return MachineState(self.machine(number).state)


@pytest.fixture
def elastic(world):
    return lambda **options: Elastic(world, **options)


def distinct(states):
    return [state for n, state in enumerate(states) if n == 0 or states[n - 1] is not state]


S = MachineState


def test_a_machine_lives_through_its_window(elastic):
    site = elastic()
    site.windows((60.0, 160.0))
    states = site.run(200.0)
    assert distinct(states) == [S.ABSENT, S.REQUESTED, S.PENDING, S.BOOTING, S.JOINED, S.RELEASING, S.ABSENT]
    asked = states.index(S.REQUESTED)
    assert 39 <= asked <= 42, "one lead before the window"
    assert states.index(S.JOINED) < 60, "it is there when the window opens"
    assert 158 <= states.index(S.RELEASING) <= 163
    assert site.provider.alive() == [] and len(site.provider.made) == 1


def test_without_a_forecast_it_comes_with_the_window_and_stays_one_lead_longer(elastic):
    site = elastic(forecast=False)
    site.windows((60.0, 160.0))
    states = site.run(220.0)
    assert 59 <= states.index(S.REQUESTED) <= 63
    assert 178 <= states.index(S.RELEASING) <= 184


def test_its_join_token_is_for_one_use_and_gone_with_the_machine(elastic):
    site = elastic()
    site.windows((10.0, 60.0))
    site.run(30.0)
    text = site.provider.made[0][3]
    assert site.state() is S.JOINED
    with pytest.raises(AuthError):
        site.world.join("one", "A", agent="another", token=text)
    before = len(site.world.store.call(lambda tx: tx.tokens()))
    site.run(60.0)
    assert site.state() is S.ABSENT and len(site.world.store.call(lambda tx: tx.tokens())) == before - 1


def test_the_lead_is_learned_from_request_to_join(elastic):
    site = elastic(lead=None)
    assert site.run(2.0) and site.world.store.call(site.world.service.elastic.status).sites[0].lead_s == 61.0
    for _ in range(3):
        site.windows((100.0, 150.0))
        site.run(200.0)
    boots = site.world.store.call(lambda tx: tx.boots("one", 5))
    assert len(boots) >= 3 and all(7.0 <= boot <= 11.0 for boot in boots)
    assert site.world.store.call(site.world.service.elastic.status).sites[0].lead_s == max(boots) + 1.0


def test_a_refused_request_is_repeated_ever_more_slowly_and_says_why(elastic):
    site = elastic()
    site.provider.refuses = "quota exceeded"
    site.windows((10.0, 200.0))
    states = site.run(60.0)
    assert states[-1] is S.BACKOFF and "quota exceeded; requested again in" in site.machine().reason
    assert states.count(S.REQUESTED) <= 6
    site.provider.refuses = ""
    assert site.run(60.0)[-1] is S.JOINED


def test_a_machine_whose_agent_never_joins_is_released_and_another_one_comes(elastic):
    site = elastic(boot_s=1e9, boot_limit=20.0)
    site.windows((10.0, 400.0))
    states = distinct(site.run(80.0))
    assert states[:6] == [S.ABSENT, S.REQUESTED, S.PENDING, S.BOOTING, S.RELEASING, S.ABSENT] or S.RELEASING in states
    assert len(site.provider.made) >= 2


def test_a_machine_that_ends_by_itself_is_replaced(elastic):
    site = elastic()
    site.windows((10.0, 400.0))
    assert site.run(40.0)[-1] is S.JOINED
    site.provider.made[0][2] = site.world.clock.t
    states = distinct(site.run(60.0))
    assert S.BACKOFF in states and states[-1] is S.JOINED and len(site.provider.made) == 2


def test_while_the_provisioner_is_away_machines_train_on_and_states_are_right_two_polls_later(elastic):
    site = elastic()
    site.windows((10.0, 400.0))
    assert site.run(40.0)[-1] is S.JOINED
    site.provider.down = True
    states = site.run(60.0)
    assert set(states) == {S.JOINED} and "cannot be reached" in site.machine().reason
    site.provider.down = False
    site.provider.made[0][2] = site.world.clock.t
    site.run(2 * POLL_S + 1.0)
    assert site.state() is not S.JOINED


def test_a_cap_holds_a_machine_and_says_which(elastic):
    site = elastic(provision={"most_per_hour": 1.0}, price=2.0)
    site.windows((10.0, 100.0))
    states = site.run(60.0)
    assert states[-1] is S.HELD and "most_per_hour = 1" in site.machine().reason and site.provider.made == []
    assert site.run(100.0)[-1] is S.ABSENT


def test_when_the_days_money_is_spent_the_machine_goes(elastic):
    site = elastic(provision={"most_per_day": 0.05}, price=3.6)  # a tenth of a cent per second: 50 seconds
    site.windows((10.0, 400.0))
    states = distinct(site.run(300.0))
    assert S.JOINED in states and states[-1] is S.HELD and "most_per_day" in site.machine().reason
    assert (
        site.world.service.elastic.status and site.world.store.call(site.world.service.elastic.status).spent_day <= 0.05
    )


def test_strangers_of_the_run_are_released(elastic):
    site = elastic()
    site.provider.made.append([0, site.world.clock.t - 100.0, None, ""])
    site.provider.made.append([7, site.world.clock.t - 100.0, None, ""])
    site.windows((1000.0, 2000.0))
    site.run(30.0)
    assert site.provider.alive() == []


def test_two_machines_are_kept_apart_and_most_machines_counts_both(elastic):
    site = elastic(machines=2, provision={"most_machines": 1})
    site.windows((10.0, 100.0))
    site.run(40.0)
    assert site.state(0) in EXISTS and site.state(1) is S.HELD
    assert site.provider.most == 1


def order(site, action, name="one", by="me"):
    request = wire.SiteOrder(name, action, by)
    return site.world.store.call(lambda tx: site.world.service.elastic.order(tx, request))


def test_orders_of_an_operator_hold_until_they_are_taken_back_also_after_a_restart(elastic):
    site = elastic()
    site.windows((1000.0, 2000.0))
    order(site, "up")
    assert site.run(30.0)[-1] is S.JOINED
    site.start()
    assert site.run(30.0)[-1] is S.JOINED and len(site.provider.made) == 1
    order(site, "auto")
    assert site.run(30.0)[-1] is S.ABSENT
    with pytest.raises(NotFound, match="sites with a provisioner: one"):
        order(site, "up", name="two")
    with pytest.raises(WireError, match="up, down, auto"):
        order(site, "sideways")
    with pytest.raises(WireError, match="who gives it"):
        order(site, "up", by=" ")


def test_the_status_names_demand_lead_and_machines(elastic):
    site = elastic()
    site.windows((10.0, 100.0))
    site.run(30.0)
    status = site.world.store.call(site.world.service.elastic.status)
    (demand,) = status.sites
    assert demand.wanted and demand.site == "one" and demand.lead_s == 20.0 and demand.until_s is not None
    assert [machine.state for machine in status.machines] == ["JOINED"]
    assert [machine.state for machine in site.world.status().machines] == ["JOINED"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_controller_that_is_killed_at_a_call_makes_no_second_machine(elastic, when):
    site = elastic()
    site.windows((40.0, 200.0))
    site.run(5.0)
    site.caller.crash = when
    while not site.caller.dead:
        site.tick()
    site.start()
    site.run(40.0)
    assert site.state() is S.JOINED and len(site.provider.made) == 1


def test_random_schedules_with_kills_make_no_machine_twice_and_leave_none_over(make_world):
    count = max(10, min(200, int(os.environ.get("CURTAIL_SCHEDULES", "0"))))
    chance = random.Random(5)
    world = make_world()
    site = Elastic(world, machines=2, boot_s=1.0, lead=10.0, shortest=5.0)
    for _ in range(count):
        spans, at = [], 0.0
        for _ in range(2):
            start = at + chance.uniform(0.0, 30.0)
            at = start + chance.uniform(2.0, 30.0)
            spans.append((start, at))
        site.windows(*spans)
        site.provider.queue_s, site.provider.drain_s = chance.uniform(0.0, 10.0), chance.uniform(0.0, 5.0)
        for _ in range(round(at) + 5):
            if chance.random() < 0.05:
                site.caller.crash = chance.choice(["before", "after"])
            site.provider.down = chance.random() < 0.03
            world.tick(1.0)
            if site.caller.dead:
                site.start()
        site.provider.down, site.caller.crash = False, ""
        for _ in range(30):
            world.tick(1.0)
        assert site.provider.alive() == [], "gone 30 s after the last window"
    assert site.provider.most == 2 and len(site.provider.made) > count
