"""A site of several machines, as the controller sees it: who may join, who leads, who may train, what is booked."""

from __future__ import annotations

import pytest

from curtail import wire
from curtail.errors import AuthError, CurtailError, Refused, WireError


class Site:
    """The machines of site s; each says what its agent would say."""

    def __init__(self, world, machines=2):
        self.world, self.machines = world, machines
        self.replies = {}

    def join(self, agent, **changes):
        values = {"machines": self.machines, "address": f"{agent}.lan", "port": 29400} | changes
        values.setdefault("machine", f"host-{agent}")
        region = values.pop("region", "A")
        token = values.pop("token", "ct0.abc.secret")
        request = wire.JoinRequest(wire.PROTOCOL, agent, "s", region, values.pop("machine"), 8, token, **values)
        return self.world.store.call(lambda tx: self.world.service.join(tx, request))

    def beat(self, agent, job=None, crew=None, state="IDLE", phase="paused", watts=None, note="", power=None):
        """A heartbeat; `crew` is the crew of the latest job, as the controller had told it."""
        who = self.world.who("s", agent)
        place = (crew.id, crew.rank, crew.size) if crew is not None else ("", 0, 1)
        beat = wire.Heartbeat(agent, "s", who.fence, state, phase, job, watts, note, *place, power)
        self.replies[agent] = self.world.store.call(lambda tx: self.world.service.heartbeat(tx, who, beat))
        return self.replies[agent]

    def trains(self, agent, crew, **more):
        return self.beat(agent, f"job-{agent}", crew, "TRAINING", "train", **more)

    def leave(self, agent):
        who = self.world.who("s", agent)
        request = wire.LeaveRequest(agent, "s", who.fence, "the test says so")
        return self.world.store.call(lambda tx: self.world.service.leave(tx, who, request))

    def checkout(self, agent):
        who = self.world.who("s", agent)
        request = wire.CheckoutRequest("s", who.fence, f"job-{agent}", None, None, False)
        return self.world.store.call(lambda tx: self.world.service.checkout(tx, who, request))

    def commit(self, agent, work, steps=5):
        world = self.world
        who = world.who("s", agent)
        blob, digest = world.contribution(work, 0.5)
        request = wire.CommitRequest(
            "s", who.fence, f"job-{agent}", work.round, work.base_version, work.base_digest, steps, steps * 4,
            steps * 32, blob, work.codec, digest, 4.0, 3.0, 2.0, 1.0, False,
        )  # fmt: skip
        receipt = world.store.call(lambda tx: world.service.commit(tx, who, request))
        world.merge()
        return receipt

    def running(self):
        """Both machines joined and run one job; what each was told of its crew."""
        self.join("one"), self.join("two")
        self.world.tick()
        crews = {agent: self.beat(agent).crew for agent in ("one", "two")}
        for agent, crew in crews.items():
            assert self.trains(agent, crew).granted
        return crews


@pytest.fixture
def site(world):
    return Site(world)


def test_two_machines_form_one_job_that_the_first_leads(site, world):
    crews = site.running()
    assert crews["one"] == wire.Crew(crews["one"].id, 0, 2, "one.lan:29400", False)
    assert crews["two"] == wire.Crew(crews["one"].id, 1, 2, "one.lan:29400", False)
    assert any("2 of 2 machines form one job: host-one, host-two" in e.text for e in world.status().events)
    assert [s.site for s in world.status().sites] == ["s"]


def test_a_machine_alone_waits_for_the_others_with_a_reason_and_then_trains_without_them(site, world):
    site.join("one")
    world.tick()
    reply = site.beat("one")
    assert (reply.granted, reply.crew) == (False, None)
    assert reply.reason == "waiting for the site's other machines: 1 of 2 here"
    (seen,) = world.status().sites
    assert (seen.granted, seen.reason) == (False, reply.reason)
    for _ in range(16):
        reply = site.beat("one")
        world.tick(1.0)
    assert reply.granted and (reply.crew.rank, reply.crew.size) == (0, 1)


def test_only_the_lead_gets_work_and_reports(site, world):
    site.running()
    refused = site.checkout("two")
    assert (refused.kind, refused.reason) == ("leave", "another machine of the site leads now")
    work = site.checkout("one").assignment
    who = world.who("s", "two")
    progress = wire.Progress("s", who.fence, "job-two", work.round, 3, 96, 3.0, 100.0)
    assert world.store.call(lambda tx: world.service.progress(tx, who, progress)).end_round
    with pytest.raises(Refused, match="another job"):
        site.commit("two", work)
    assert site.commit("one", work).tokens == 160
    world.check()


def test_a_third_agent_of_two_is_refused_until_one_is_silent_or_left(site, world):
    site.running()
    with pytest.raises(Refused, match=r"already served by 2 agents, on host-one, host-two"):
        site.join("three")
    for _ in range(16):
        site.trains("one", site.replies["one"].crew)
        world.tick(1.0)
    with pytest.raises(Refused, match="belongs to another key, of host-one, host-two"):
        site.join("three")
    token = world.token("s")
    site.join("three", token=token)
    with pytest.raises(ValueError, match="not enough values"):
        world.who("s", "two")
    site.leave("one")
    assert site.join("four", token=token).fence == 4
    assert [row.agent for row in world.store.call(lambda tx: tx.machines("s"))] == ["three", "four"]


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"machines": 3}, Refused, "has 2 machines by the word of its agent on host-one, this one says 3"),
        ({"machines": 1}, Refused, "this one says 1"),
        ({"region": "B"}, Refused, "is in region 'A'"),
        ({"address": "127.0.0.1"}, Refused, "do not reach each other"),
        ({"machines": 0}, WireError, "1 to 64 machines"),
        ({"address": ""}, WireError, "each must report the address"),
        ({"port": 0}, WireError, "address and port that the others use"),
    ],
)
def test_a_machine_that_says_something_else_of_the_site_is_refused_and_changes_nothing(
    site, world, changes, error, sentence
):
    site.join("one")
    with pytest.raises(error, match=sentence):
        site.join("two", **changes)
    assert [row.agent for row in world.store.call(lambda tx: tx.machines("s"))] == ["one"]
    assert world.store.call(lambda tx: tx.site("s")).fence == 1


def test_machines_on_one_host_may_meet_on_the_loopback(site):
    site.join("one", machine="host", address="127.0.0.1")
    assert site.join("two", machine="host", address="127.0.0.1", port=29401).fence == 2


def test_a_site_that_is_alone_with_one_machine_says_so_to_a_second_of_two(site, world):
    world.join("s", agent="one")
    with pytest.raises(Refused, match="has 1 machine by the word of its agent"):
        site.join("two")


def test_the_number_changes_when_no_other_machine_of_the_site_is_here(site, world):
    site.running()
    world.clock.t += 100.0
    alone = Site(world, machines=1)
    alone.join("one", address="", port=0)
    assert [row.agent for row in world.store.call(lambda tx: tx.machines("s"))] == ["one"]
    world.tick()
    assert world.beat("s").granted and world.beat("s").crew is None


def test_a_credential_belongs_to_one_machine(site, world):
    first, second = site.join("one").credential, site.join("two").credential
    who = [world.authenticate(credential) for credential in (first, second)]
    assert [(row.site, row.agent, row.fence) for row in who] == [("s", "one", 1), ("s", "two", 2)]
    site.join("two")
    with pytest.raises(AuthError):
        world.authenticate(second)
    assert world.authenticate(first).agent == "one"


def lose(site, world, lost, stays, crew):
    """`lost` says nothing more until it counts as silent; what `stays` is told then."""
    for _ in range(16):
        site.trains(stays, crew)
        world.tick(1.0)
    return site.trains(stays, crew).crew


def test_without_the_second_machine_the_lead_starts_again_alone_and_its_job_is_called_broken(site, world):
    crews = site.running()
    work = site.checkout("one").assignment
    told = lose(site, world, "two", "one", crews["one"])
    assert (told.rank, told.size, told.broken) == (0, 1, True) and told.id != crews["one"].id
    site.beat("one", None, crews["one"])
    assert site.beat("one", None, crews["one"]).granted
    site.trains("one", told)
    world.tick()
    assert site.checkout("one").assignment.lease_start == work.lease_start, "what the broken job held came back"
    world.check()


def test_without_the_lead_the_other_leads_and_the_old_leads_contribution_is_refused(site, world):
    crews = site.running()
    work = site.checkout("one").assignment
    told = lose(site, world, "one", "two", crews["two"])
    assert (told.rank, told.size, told.endpoint, told.broken) == (0, 1, "two.lan:29400", True)
    with pytest.raises(Refused, match=r"round has ended|another of its machines leads"):
        site.commit("one", work)
    site.beat("two", None, crews["two"])
    site.trains("two", told)
    assert site.checkout("two").assignment.lease_start == work.lease_start
    world.check()


def test_a_machine_that_comes_later_is_taken_in_after_the_lead_drained_in_order(site, world):
    crews = site.running()
    alone = lose(site, world, "two", "one", crews["one"])
    site.beat("one", None, crews["one"])
    site.trains("one", alone)
    work = site.checkout("one").assignment
    site.join("two")
    told = site.trains("one", alone).crew
    assert (told.rank, told.size, told.broken) == (0, 2, False), "its job can go on until it has drained"
    waits = site.beat("two")
    assert waits.crew.id == told.id and not waits.granted
    assert waits.reason == "waiting for the site's other machines to end the job before"
    assert site.commit("one", work).tokens == 160
    assert site.beat("one", None, alone).granted and site.beat("two").granted
    world.check()


def test_an_agent_that_was_killed_and_started_again_at_once_gets_a_new_crew(site, world):
    crews = site.running()
    assert site.beat("two", None, crews["two"]).crew.id != crews["two"].id
    assert not site.replies["two"].granted, "the first machine's job is to end first"
    told = site.trains("one", crews["one"]).crew
    assert told.broken and told.id == site.replies["two"].crew.id


def test_a_second_machine_that_drains_for_itself_lets_the_lead_hand_in_what_it_has(site, world):
    crews = site.running()
    site.beat("two", "job-two", crews["two"], "DRAINING", "drain")
    told = site.trains("one", crews["one"]).crew
    assert (told.size, told.broken) == (1, False)
    again = site.beat("two", "job-two", crews["two"], "DRAINING", "drain")
    assert again.crew is None and site.trains("one", crews["one"]).crew.id == told.id, "it is not taken in again"
    site.leave("two")
    assert any("host-two of s left" in event.text for event in world.status().events)


def test_the_last_machine_that_leaves_takes_the_site_along(site, world):
    crews = site.running()
    site.checkout("one")
    site.leave("one")
    assert [s.site for s in world.status().sites] == ["s"] and world.status().round is None
    site.beat("two", None, crews["two"])
    site.leave("two")
    assert world.status().sites == ()
    world.check()


def test_after_a_restart_of_the_controller_the_job_of_two_machines_goes_on(site, world):
    crews = site.running()
    work = site.checkout("one").assignment
    world.start()
    assert site.checkout("one").reason == "waiting for the agent's next report"
    world.tick()
    reply = site.trains("one", crews["one"])
    assert (reply.granted, reply.crew) == (True, None), "the second may report any moment"
    assert site.checkout("one").reason == "waiting for the reports of the site's other machines"
    assert site.trains("two", crews["two"]).crew == crews["two"]
    assert site.trains("one", crews["one"]).crew == crews["one"]
    again = site.checkout("one").assignment
    assert (again.round, again.lease_start) == (work.round, work.lease_start)
    site.commit("one", again)
    world.check()


def test_a_rejoin_of_the_second_machine_leaves_the_leads_lease_alone_and_one_of_the_lead_ends_it(site, world):
    site.running()
    work = site.checkout("one").assignment
    site.join("two")
    assert world.status().round.round == work.round
    site.join("one")
    assert world.status().round is None
    world.check()


def test_measured_watts_are_added_up_if_every_machine_measures(site, world):
    crews = site.running()
    for seconds, second in ((3600.0, 900.0), (3600.0, None)):
        site.trains("one", crews["one"], watts=700.0), site.trains("two", crews["two"], watts=second)
        world.tick(0.0)
        world.clock.t += seconds
        world.service.tick(world.service.replay.now(), {})
        world.tick(0.0)
    site.leave("two"), site.leave("one")
    rows = [e for e in world.store.call(lambda tx: tx.entries()) if e.t1 - e.t0 > 3000 and e.phase == "train"]
    assert [(e.method, e.watts) for e in rows] == [("meter", 1600.0), ("constant", 2000.0)], "per site, not machine"


def test_counters_of_all_machines_are_added_up_and_one_that_falls_silent_makes_the_site_modelled(site, world):
    crews = site.running()
    for second in range(60):
        for agent, watts in (("one", 700.0), ("two", 900.0)):
            if agent == "one" or second < 30:
                counts = wire.Power(agent, "nvml-total-energy", 1.0 * second, second * watts, second * watts, 0.0)
                site.trains(agent, crews[agent], power=counts)
        world.tick(1.0)
    world.store.call(lambda tx: world.service.energy_ledger.finish(tx, "s", world.service.replay.now()))
    rows = world.store.call(lambda tx: tx.entries())
    measured = [e for e in rows if e.method == "nvml-total-energy"]
    assert measured and {round(e.watts) for e in measured} == {1600}
    assert rows[-1].method == "constant" and rows[-1].watts == 2000.0, "what the silent one draws is not known"
    assert max(e.t1 for e in measured) < rows[-1].t1 - 10.0


def test_a_store_from_before_there_were_machines_keeps_its_sites_and_credentials(tmp_path):
    import sqlite3

    from controller.store import MIGRATIONS, Store, migrate

    path = tmp_path / "state.db"
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, path, MIGRATIONS[:2])
    connection.execute("INSERT INTO sites VALUES ('s', 'A', 'agent', 'host', 8, 3, 'hash', 0, 64, 1.5)")
    connection.close()
    store = Store(path)
    store.open()
    try:
        row, site = store.call(lambda tx: (tx.machine_by_credential("hash"), tx.site("s")))
    finally:
        store.close()
    assert (row.site, row.agent, row.machine, row.devices, row.fence, row.left_run) == ("s", "agent", "host", 8, 3, 0)
    assert (site.region, site.machines, site.fence, site.tokens) == ("A", 1, 3, 64)


def test_a_message_of_another_protocol_is_refused_before_anything_else(world):
    request = wire.JoinRequest(3, "one", "s", "A", "host", 1, "ct0.abc.secret")
    with pytest.raises(CurtailError, match="speaks protocol 3"):
        world.store.call(lambda tx: world.service.join(tx, request))
