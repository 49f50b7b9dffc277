"""Which machines of a site form its torchrun job, and in which order. Pure.

A site is the GPUs behind one grid connection, on one or more machines, with an
agent on each. Its *crew* is the list of machines that run one job together; the
first, the lead, holds rank 0, speaks for the site, and lends its address for
the rendezvous. A machine that falls silent makes a new crew of the rest; one
that comes makes a larger crew. Each crew has an id of its own, so that the
remains of an older job never meet a newer one. Times: seconds of one clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a site, as its agent last described it."""

    agent: str
    address: str  # where the site's other machines reach it
    port: int  # free for the rendezvous, should it lead
    order: int  # place in the order of joining
    crew: str = ""  # id of the crew whose job it runs, "" without a job
    rank: int = 0  # its place in that crew
    size: int = 1  # how many machines that crew has


@dataclass(frozen=True, slots=True)
class Crew:
    """The machines of one torchrun job, the lead first."""

    id: str
    agents: tuple[str, ...]
    endpoint: str  # host:port of the rendezvous at the lead

    def rank(self, agent: str) -> int | None:
        """The machine's place, or None if it has none."""
        return self.agents.index(agent) if agent in self.agents else None


@dataclass(frozen=True, slots=True)
class Muster:
    """What is remembered between two looks at a site's machines."""

    crew: Crew | None = None
    waiting_since: float | None = None  # since when machines are here that the crew lacks

    @property
    def settled(self) -> bool:
        """Nobody waits to be taken in."""
        return self.crew is not None and self.waiting_since is None


def muster(before: Muster, heard: Iterable[Machine], expected: int, now: float, patience: float, new_id: str) -> Muster:
    """The crew at `now`.

    A crew without one of its machines is replaced at once: its job cannot make
    another step. Machines that came are taken in when all `expected` are here, or
    when they have waited `patience` seconds for the rest, so that machines that
    start together make one crew and not several, one after the other.

    Args:
        heard: the machines heard from lately.
        expected: how many machines the site says it has.
        new_id: the id of a crew that has to be made now.
    """
    here = sorted(heard, key=lambda machine: machine.order)
    if not here:
        return Muster()
    crew = before.crew if before.crew is not None else _running(here)
    present = {machine.agent for machine in here}
    lost = crew is not None and not present.issuperset(crew.agents)
    missing = crew is None or not present.issubset(crew.agents)
    if crew is not None and not lost and not missing:
        return Muster(crew)
    since = now if before.waiting_since is None else before.waiting_since
    complete = len(here) >= expected
    if lost or complete or now - since >= patience:
        return Muster(_make(crew, here, new_id))
    return replace(before, crew=crew, waiting_since=since)


def _make(old: Crew | None, here: list[Machine], new_id: str) -> Crew:
    """All that are here; the lead stays, because it has the weights and the optimizer's state at hand."""
    lead = next((machine for machine in here if old is not None and machine.agent == old.agents[0]), here[0])
    rest = tuple(machine.agent for machine in here if machine is not lead)
    return Crew(new_id, (lead.agent, *rest), f"{lead.address}:{lead.port}")


def _running(here: list[Machine]) -> Crew | None:
    """The crew whose job these machines say they run: after a restart of the controller it simply goes on."""
    running = sorted((machine for machine in here if machine.crew), key=lambda machine: machine.rank)
    crews = {(machine.crew, machine.size) for machine in running}
    if len(crews) != 1 or [machine.rank for machine in running] != list(range(running[0].size)):
        return None
    lead = running[0]
    return Crew(lead.crew, tuple(machine.agent for machine in running), f"{lead.address}:{lead.port}")
