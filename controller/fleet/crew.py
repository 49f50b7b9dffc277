"""Chooses the machines that form a site's torchrun job (the crew), and their ranks; pure.

A site is the GPUs behind one grid connection, on one or more machines with an
agent each. Its *crew* is the list of machines that run one job together. The first
is the lead: it has rank 0, communicates with the controller for the site, and
hosts the rendezvous. The crew is replaced when a machine becomes silent or joins,
and when the job ends on any machine. So each crew runs one job under its own id,
and processes of an older job cannot connect to a newer one. Times: seconds of one
clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CrewMachine:
    """One machine of a site, as its agent last reported it."""

    agent: str
    address: str  # where the site's other machines reach it
    port: int  # for the rendezvous, if it becomes the lead
    order: int  # rank in the order of joining
    crew: str = ""  # id of the crew of its latest job; "": none
    alive: bool = False  # whether that job runs
    rank: int = 0  # its rank in that crew
    size: int = 1  # number of machines in that crew

    @property
    def endpoint(self) -> str:
        """Address of the rendezvous if it is the lead, host:port; IPv6 addresses in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def runs(self, crew: str) -> bool:
        """Does it run the job of that crew?"""
        return self.alive and self.crew == crew


@dataclass(frozen=True, slots=True)
class CrewRoster:
    """The machines of one torchrun job, the lead first."""

    id: str
    agents: tuple[str, ...]
    endpoint: str  # host:port of the rendezvous at the lead

    @property
    def lead(self) -> str:
        """The machine that holds rank 0."""
        return self.agents[0]

    def rank(self, agent: str) -> int | None:
        """The machine's rank; None if it is not in the crew."""
        return self.agents.index(agent) if agent in self.agents else None


@dataclass(frozen=True, slots=True)
class CrewState:
    """A site's crew, and since when machines wait to enter it."""

    crew: CrewRoster | None = None
    waiting_since: float | None = None  # since when there are machines that are not in the crew


def form_crew(
    before: CrewState, heard: Iterable[CrewMachine], expected: int, now: float, patience: float, new_id: str
) -> CrewState:
    """The crew at `now`.

    If a machine of the crew is missing, or its job ended, the crew is replaced at
    once, because the job cannot make another step. New machines enter when all
    `expected` machines are present, or after they have waited for `patience`
    seconds, so that machines that start together form one crew and not a series.

    Args:
        heard: the machines with recent heartbeats.
        expected: the number of machines that the site reports.
        new_id: the id for a crew that is formed now.
    """
    here = sorted(heard, key=lambda machine: machine.order)
    if not here:
        return CrewState()
    crew = before.crew if before.crew is not None else _running(here)
    if crew is not None:
        # A machine outside the crew that still runs a job can enter only after that job has ended.
        here = [machine for machine in here if machine.agent in crew.agents or not machine.alive]
    present = {machine.agent: machine for machine in here}
    over = crew is not None and _over(crew, present)
    missing = crew is None or not set(present) <= set(crew.agents)
    if not over and not missing:
        return CrewState(crew)
    if not here:
        return CrewState()
    since = now if before.waiting_since is None else before.waiting_since
    if over or len(here) >= expected or now - since >= patience:
        return CrewState(_make(crew, here, new_id))
    return CrewState(crew, since)


def _over(crew: CrewRoster, present: dict[str, CrewMachine]) -> bool:
    """Is the crew's job unable to start or to make another step?"""
    for agent in crew.agents:
        machine = present.get(agent)
        if machine is None or (machine.crew == crew.id and not machine.alive):
            return True
    return present[crew.lead].endpoint != crew.endpoint


def _make(old: CrewRoster | None, here: list[CrewMachine], new_id: str) -> CrewRoster:
    """A crew of all present machines. The lead stays, because it has the weights and the optimizer state."""
    lead = next((machine for machine in here if old is not None and machine.agent == old.lead), here[0])
    rest = tuple(machine.agent for machine in here if machine is not lead)
    return CrewRoster(new_id, (lead.agent, *rest), lead.endpoint)


def _running(here: list[CrewMachine]) -> CrewRoster | None:
    """The crew whose job these machines report, so that it continues after a restart of the controller."""
    running = sorted((machine for machine in here if machine.alive and machine.crew), key=lambda machine: machine.rank)
    crews = {(machine.crew, machine.size) for machine in running}
    if len(crews) != 1 or [machine.rank for machine in running] != list(range(running[0].size)):
        return None
    lead = running[0]
    return CrewRoster(lead.crew, tuple(machine.agent for machine in running), lead.endpoint)
