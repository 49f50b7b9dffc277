"""Which machines of a site form its torchrun job, and in which order. Pure.

A site is the GPUs behind one grid connection, on one or more machines, with an
agent on each. Its *crew* is the list of machines that run one job together; the
first, the lead, holds rank 0, speaks for the site, and lends its address for
the rendezvous. A machine that falls silent makes a new crew of the rest; one
that comes makes a larger crew; a job that ends anywhere ends its crew. So each
crew runs one job, under an id of its own, and the remains of an older job never
meet a newer one. Times: seconds of one clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a site, as its agent last described it."""

    agent: str
    address: str  # where the site's other machines reach it
    port: int  # free for the rendezvous, should it lead
    order: int  # place in the order of joining
    crew: str = ""  # id of the crew of its latest job, "" without one
    alive: bool = False  # whether that job is alive
    rank: int = 0  # its place in that crew
    size: int = 1  # how many machines that crew has

    @property
    def endpoint(self) -> str:
        """Where the others meet it as their lead; IPv6 addresses in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def runs(self, crew: str) -> bool:
        """Is it in the job of that crew?"""
        return self.alive and self.crew == crew


@dataclass(frozen=True, slots=True)
class Crew:
    """The machines of one torchrun job, the lead first."""

    id: str
    agents: tuple[str, ...]
    endpoint: str  # host:port of the rendezvous at the lead

    @property
    def lead(self) -> str:
        """The machine that holds rank 0."""
        return self.agents[0]

    def rank(self, agent: str) -> int | None:
        """The machine's place, or None if it has none."""
        return self.agents.index(agent) if agent in self.agents else None


@dataclass(frozen=True, slots=True)
class Muster:
    """What is remembered between two looks at a site's machines."""

    crew: Crew | None = None
    waiting_since: float | None = None  # since when machines are here that the crew lacks


def muster(before: Muster, heard: Iterable[Machine], expected: int, now: float, patience: float, new_id: str) -> Muster:
    """The crew at `now`.

    A crew without one of its machines, or whose job ended at one of them, is
    replaced at once: its job cannot make another step. Machines that came are
    taken in when all `expected` are here, or when they have waited `patience`
    seconds for the rest, so that machines that start together make one crew and
    not several, one after the other.

    Args:
        heard: the machines heard from lately.
        expected: how many machines the site says it has.
        new_id: the id of a crew that has to be made now.
    """
    here = sorted(heard, key=lambda machine: machine.order)
    if not here:
        return Muster()
    crew = before.crew if before.crew is not None else _running(here)
    if crew is not None:
        # One that left the crew is not taken in again before its job is over.
        here = [machine for machine in here if machine.agent in crew.agents or not machine.alive]
    present = {machine.agent: machine for machine in here}
    over = crew is not None and _over(crew, present)
    missing = crew is None or not set(present) <= set(crew.agents)
    if not over and not missing:
        return Muster(crew)
    if not here:
        return Muster()
    since = now if before.waiting_since is None else before.waiting_since
    if over or len(here) >= expected or now - since >= patience:
        return Muster(_make(crew, here, new_id))
    return Muster(crew, since)


def _over(crew: Crew, present: dict[str, Machine]) -> bool:
    """Can the crew's job not make another step, or not begin?"""
    for agent in crew.agents:
        machine = present.get(agent)
        if machine is None or (machine.crew == crew.id and not machine.alive):
            return True
    return present[crew.lead].endpoint != crew.endpoint


def _make(old: Crew | None, here: list[Machine], new_id: str) -> Crew:
    """All that are here; the lead stays, because it has the weights and the optimizer's state at hand."""
    lead = next((machine for machine in here if old is not None and machine.agent == old.lead), here[0])
    rest = tuple(machine.agent for machine in here if machine is not lead)
    return Crew(new_id, (lead.agent, *rest), lead.endpoint)


def _running(here: list[Machine]) -> Crew | None:
    """The crew whose job these machines say they run: after a restart of the controller it simply goes on."""
    running = sorted((machine for machine in here if machine.alive and machine.crew), key=lambda machine: machine.rank)
    crews = {(machine.crew, machine.size) for machine in running}
    if len(crews) != 1 or [machine.rank for machine in running] != list(range(running[0].size)):
        return None
    lead = running[0]
    return Crew(lead.crew, tuple(machine.agent for machine in running), lead.endpoint)
