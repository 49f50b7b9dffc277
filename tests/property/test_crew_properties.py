"""Machines of one site that die, come back, leave and lose messages at random: does it always train again?

The controller's side is real (`controller.fleet.live`), the agents follow the rules of `agent.loop` and
`agent.lifecycle`, and jobs behave like torchrun: a part that ends ends the others soon, and a part that waits for
others waits long.
"""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from agent.lifecycle import BROKEN_S, DRAIN_S
from controller.fleet.live import LiveMachine, LiveSite, Permit
from curtail import wire

LOST_AFTER = 15.0
CHAOS_S, QUIET_S = 240, 200
RENDEZVOUS_S = 120


class Machine:
    """An agent and its part of a job."""

    def __init__(self, name, place):
        self.name, self.place = name, place
        self.up = False
        self.started = []  # ids of the crews whose job was started here
        self.ran = None  # the crew of the latest job; its agent keeps that on disk
        self.forget()

    def forget(self):
        """What an agent that starts again does not know."""
        self.alive, self.crew = False, None
        self.since = self.drains = self.ends = None
        self.broken = self.leaving = False

    def end(self):
        self.alive, self.drains, self.ends, self.broken = False, None, None, False

    def start(self, now):
        assert self.crew.id not in self.started, "no job is started twice under one id"
        self.started.append(self.crew.id)
        self.ran, self.alive, self.since = self.crew, True, now


class Site:
    def __init__(self, seed, count):
        self.random = random.Random(seed)
        self.machines = [Machine(f"m{n}", n) for n in range(count)]
        self.live = LiveSite("s", "A", expected=count)
        self.now, self.names = 0.0, 0

    def pick(self, probability):
        return self.random.random() < probability

    # -- the world ---------------------------------------------------------------

    def second(self, chaos):
        self.now += 1.0
        for machine in self.machines:
            if chaos:
                self.mishap(machine)
            elif not machine.up:
                self.boot(machine)
        self.jobs()
        for machine in self.machines:
            if machine.up and (int(self.now) + machine.place) % 2 == 0 and not (chaos and self.pick(0.1)):
                self.beat(machine)
        self.gather()

    def mishap(self, machine):
        if not machine.up and self.pick(0.05):
            self.boot(machine)
        elif machine.up and self.pick(0.01):  # kill -9
            machine.up = False
            machine.end()
        elif machine.up and machine.alive and self.pick(0.01):  # its part of the job dies
            machine.end()
        elif machine.up and self.pick(0.005):  # told to stop
            machine.leaving = True
            machine.drains = self.now if machine.alive else None

    def boot(self, machine):
        machine.up = True
        machine.forget()
        if self.pick(0.3):  # it joins anew
            self.live.machines[machine.name] = LiveMachine(machine.name, f"{machine.name}.lan", 1, machine.place)
            self.live.machines[machine.name].seen = self.live.seen = self.now

    def jobs(self):
        """A second of every job."""
        for machine in self.machines:
            if not machine.alive:
                continue
            parts = [other for other in self.machines if other.alive and other.ran.id == machine.ran.id]
            began = [other for other in self.machines if machine.ran.id in other.started]
            lead = next((part for part in parts if part.ran.rank == 0), None)
            if len(parts) < len(began) or (lead is None and len(began) == machine.ran.size):
                self.fall(machine)  # another part is gone
            elif len(parts) == machine.ran.size and lead.drains is not None:
                self.fall(machine)  # the lead says that all stop
            elif len(parts) < machine.ran.size and self.now - machine.since > RENDEZVOUS_S:
                machine.end()
            elif machine.drains is not None:
                patience = BROKEN_S if machine.broken else DRAIN_S
                if self.now - machine.drains > patience:
                    machine.end()

    def fall(self, machine):
        if machine.ends is None:
            machine.ends = self.now + self.random.randint(0, 3)
        if self.now >= machine.ends:
            machine.end()

    # -- the agents ----------------------------------------------------------------

    def beat(self, machine):
        if machine.leaving and not machine.alive:
            machine.up, machine.leaving = False, False
            self.live.machines.pop(machine.name, None)
            return
        ran, drains = machine.ran, machine.alive and machine.drains is not None
        place = ("", 0, 1) if ran is None else (ran.id, ran.rank, ran.size) if machine.alive else (ran.id, 0, 1)
        job = f"job-{machine.name}" if machine.alive else None
        state, phase = ("DRAINING", "drain") if drains else ("TRAINING", "train") if job else ("IDLE", "paused")
        here = self.live.machines.get(machine.name)
        if here is None:
            here = LiveMachine(machine.name, f"{machine.name}.lan", 1, machine.place)
            self.live.machines[machine.name] = here
        here.take(wire.Heartbeat(machine.name, "s", 1, state, phase, job, None, "", *place), self.now)
        self.gather()
        self.live.show()
        self.live.permit = Permit(True, self.now + LOST_AFTER, -math.inf, "the region is curtailed")
        granted = not self.live.waits(here, self.now, LOST_AFTER)
        self.hear(machine, granted, self.live.crew_of(here, self.now, LOST_AFTER))

    def hear(self, machine, granted, crew):
        machine.crew = crew
        if machine.alive:
            changed = crew is not None and crew.id != machine.ran.id
            machine.broken = changed and crew.broken
            if (changed or not granted) and machine.drains is None:
                machine.drains = self.now
        elif granted and not machine.leaving and crew is not None and crew.id != (machine.ran and machine.ran.id):
            machine.start(self.now)

    def gather(self):
        self.names += 1
        self.live.gather(self.now, LOST_AFTER, lambda: f"crew{self.names}")

    # -- what must hold --------------------------------------------------------------

    def training(self):
        """The crews whose job can make a step now."""
        alive = [machine for machine in self.machines if machine.alive and machine.drains is None]
        ids = {machine.ran.id for machine in alive}
        return {
            crew: ranks
            for crew in ids
            if (ranks := sorted(m.ran.rank for m in alive if m.ran.id == crew))
            == list(range(next(m.ran.size for m in alive if m.ran.id == crew)))
        }


@given(st.integers(0, 2**32), st.integers(2, 4))
def test_whatever_happens_to_its_machines_a_site_trains_again_as_one_job_of_all(seed, count):
    site = Site(seed, count)
    for _ in range(CHAOS_S):
        site.second(chaos=True)
    for _ in range(QUIET_S):
        site.second(chaos=False)
    assert list(site.training().values()) == [list(range(count))]
    assert site.live.lead is not None and site.live.state == "TRAINING"
    crew = site.live.crew_state.crew
    for _ in range(30):
        site.second(chaos=False)
    assert site.live.crew_state.crew == crew, "and it stays so"


@given(st.integers(0, 2**32))
def test_a_site_of_which_one_machine_stays_away_trains_with_the_rest(seed):
    site = Site(seed, 3)
    for _ in range(CHAOS_S):
        site.second(chaos=True)
    away = site.machines.pop(site.random.randrange(3))
    away.up = False
    away.end()
    for _ in range(QUIET_S):
        site.second(chaos=False)
    assert list(site.training().values()) == [[0, 1]]
