"""What the controller knows of each site at this moment; soft state, rebuilt from heartbeats.

Nothing here is durable: after a restart every site is unheard-of until it
reports, and holds no permit until then. A site shows what its lead reports: the
machine that speaks for the site's job (`controller.fleet.crew`). Times are monotonic
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf

from controller.fleet.crew import Crew, Machine, Muster, muster
from controller.store.rows import MachineRow
from curtail import wire
from curtail.carbon.accounting import RUNNING


@dataclass(frozen=True, slots=True)
class Permit:
    """May a site train, until when, and why. `controller.scheduling.permits` alone decides it.

    Times are monotonic seconds; -inf: not at all.
    """

    granted: bool
    until: float  # the site's job trains up to then, also after its grant was taken back
    hold_until: float  # its weights may stay on idle GPUs up to then
    reason: str

    def is_live(self, now: float) -> bool:
        """May the site's job still train, by what its agent was told?"""
        return self.until > now

    def holds(self, now: float) -> bool:
        """May its weights stay on its GPUs?"""
        return self.hold_until > now

    def valid_s(self, now: float) -> float:
        """Seconds for which the permit is given from `now` on."""
        return max(0.0, self.until - now) if self.granted else 0.0

    def hold_s(self, now: float) -> float:
        """Seconds for which the weights may stay on idle GPUs from `now` on."""
        return max(0.0, self.hold_until - now)


UNHEARD = Permit(granted=False, until=-inf, hold_until=-inf, reason="not heard from yet")
"""Of a site whose agent has not reported since the controller's start."""


@dataclass(slots=True)
class LiveMachine:
    """One machine of a site as its last messages describe it."""

    agent: str
    address: str = ""
    port: int = 0
    place: int = 0
    state: str = "JOINING"
    phase: str = "paused"
    job: str | None = None
    watts: float | None = None  # measured, or None
    note: str = ""
    crew: str = ""  # of its latest job
    rank: int = 0
    size: int = 1
    power: wire.Power | None = None  # what its meter has counted; None: it has none
    seen: float | None = None

    @classmethod
    def of(cls, row: MachineRow) -> LiveMachine:
        """A machine that the store knows and that was not heard from yet."""
        return cls(row.agent, row.address, row.port, row.place)

    def take(self, beat: wire.Heartbeat, now: float) -> None:
        """What it says."""
        self.seen = now
        self.state, self.phase, self.job, self.watts, self.note = (
            beat.state,
            beat.phase,
            beat.job,
            beat.watts,
            beat.note,
        )
        self.crew, self.rank, self.size = beat.crew, beat.crew_rank, beat.crew_size
        self.power = beat.power

    def heard(self, now: float, lost_after: float) -> bool:
        """Did it report within `lost_after` seconds?"""
        return self.seen is not None and now - self.seen <= lost_after

    def runs(self, crew: str) -> bool:
        """Is it in the job of that crew, by its last word?"""
        return self.job is not None and self.crew == crew

    def described(self) -> Machine:
        """What the choice of a crew depends on."""
        return Machine(
            self.agent, self.address, self.port, self.place, self.crew, self.job is not None, self.rank, self.size
        )


@dataclass(slots=True)
class LiveSite:
    """One site as the last messages of its machines describe it."""

    site: str
    region: str
    expected: int = 1  # machines
    machines: dict[str, LiveMachine] = field(default_factory=dict)  # by agent
    muster: Muster = field(default_factory=Muster)
    former: Crew | None = None  # the crew before
    led_by: str | None = None  # the lead of the latest crew
    state: str = "JOINING"
    phase: str = "paused"
    job: str | None = None
    watts: float | None = None  # of all machines, if all of them measure
    note: str = ""
    seen: float | None = None
    permit: Permit = UNHEARD
    held_since: float | None = None  # controller's clock; since when it holds
    promised: float | None = None  # since when it is told that it may train
    checked_out_job: str | None = None  # the job that asked for work
    working_on: int | None = None  # the round of which its job reported last
    round_tokens: int = 0  # trained in it
    step: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0

    def heard(self, now: float, lost_after: float) -> bool:
        """Did it report within `lost_after` seconds?"""
        return self.seen is not None and now - self.seen <= lost_after

    def running(self, now: float, lost_after: float) -> bool:
        """Are its weights on its GPUs, or on their way? Also for a moment after it was told that it may train."""
        if self.phase in RUNNING:
            return True
        return self.phase == "paused" and self.promised is not None and now - self.promised <= lost_after

    def ready(self, now: float, lost_after: float) -> bool:
        """May it train, and has its job asked for work?"""
        return self.permit.granted and self.heard(now, lost_after) and self.job_asked()

    def job_asked(self) -> bool:
        """Has the job that is alive asked for work? The first request may come before the heartbeat."""
        return self.checked_out_job is not None and self.job in (None, self.checked_out_job)

    # -- machines --------------------------------------------------------------

    @property
    def lead(self) -> LiveMachine | None:
        """The machine whose reports are the site's; without a crew the first that has a job or was heard from."""
        if self.muster.crew is not None and self.muster.crew.lead in self.machines:
            return self.machines[self.muster.crew.lead]
        machines = self.machines.values()
        return min(machines, key=lambda m: (m.job is None, m.seen is None, m.place), default=None)

    def show(self) -> None:
        """Take over what the lead reports, and the sum of what the machines measure."""
        lead = self.lead
        if lead is None:
            return
        self.state, self.phase, self.job = lead.state, lead.phase, lead.job
        self.note = lead.note or next((m.note for m in self.machines.values() if m.note), "")
        watts = [machine.watts for machine in self.machines.values()]
        measured = [value for value in watts if value is not None]
        self.watts = sum(measured) if len(measured) == len(watts) else None
        self.seen = max((m.seen for m in self.machines.values() if m.seen is not None), default=None)
        if self.job is None:
            self.checked_out_job = None

    def led(self, agent: str) -> bool:
        """Does this machine speak for the site, as far as is known?"""
        return self.muster.crew is None or self.muster.crew.lead == agent

    def gather(self, now: float, lost_after: float, new_id: Callable[[], str]) -> Crew | None:
        """Look which machines are here; the crew that has to be formed anew, None if nothing changed.

        Args: new_id: makes its name; not asked at a site of one machine, where there is none.
        """
        if self.expected == 1:
            return None
        before = self.muster.crew
        here = [m.described() for m in self.machines.values() if m.heard(now, lost_after) and not self._going(m)]
        self.muster = muster(self.muster, here, self.expected, now, lost_after, new_id())
        crew = self.muster.crew
        if crew is None or (before is not None and before.id == crew.id):
            return None
        self.former = before or self.former
        return crew

    def _going(self, machine: LiveMachine) -> bool:
        """Does it leave the job while its lead trains on? Then the job shall end in order, while all can still step."""
        crew, lead = self.muster.crew, self.lead
        if crew is None or lead is None or lead is machine or not machine.runs(crew.id) or not lead.runs(crew.id):
            return False
        return self.permit.granted and machine.phase == "drain" and lead.phase != "drain"

    def waits(self, machine: LiveMachine, now: float, lost_after: float) -> str:
        """Why this machine must not train although its region may; "" if it may."""
        crew = self.muster.crew
        if self.expected == 1 or (crew is None and machine.job is not None):
            return ""  # after a restart of the controller a job goes on until all have reported
        if crew is None or machine.agent not in crew.agents:
            count = sum(m.heard(now, lost_after) for m in self.machines.values())
            return f"waiting for the site's other machines: {count} of {self.expected} here"
        if machine.job is not None:
            return ""
        if any(m.job is not None and m.crew != crew.id for m in self._members(crew)):
            return "waiting for the site's other machines to end the job before"
        return ""

    def crew_of(self, machine: LiveMachine, now: float, lost_after: float) -> wire.Crew | None:
        """What the machine is told of its crew."""
        crew = self.muster.crew
        rank = None if crew is None else crew.rank(machine.agent)
        if crew is None or rank is None:
            return None
        broken = machine.job is not None and machine.crew != crew.id and not self._intact(machine.crew, now, lost_after)
        return wire.Crew(crew.id, rank, len(crew.agents), crew.endpoint, broken)

    def _intact(self, crew: str, now: float, lost_after: float) -> bool:
        """Can the job of that crew make another step, as far as is known?"""
        old = self.former
        if old is None or old.id != crew:
            return False
        members = self._members(old)
        return len(members) == len(old.agents) and all(m.runs(crew) and m.heard(now, lost_after) for m in members)

    def _members(self, crew: Crew) -> list[LiveMachine]:
        return [self.machines[agent] for agent in crew.agents if agent in self.machines]


class Fleet:
    """All sites by name."""

    def __init__(self) -> None:
        self._sites: dict[str, LiveSite] = {}
        self._sorted: tuple[LiveSite, ...] | None = None  # None: sites came or went

    def __len__(self) -> int:
        return len(self._sites)

    def add(self, site: str, region: str, expected: int = 1, machines: Iterable[LiveMachine] = ()) -> LiveSite:
        """A site that joined anew."""
        self._sites[site] = LiveSite(site, region, expected, {machine.agent: machine for machine in machines})
        self._sorted = None
        return self._sites[site]

    def find(self, site: str) -> LiveSite | None:
        """The site, None if it is not here."""
        return self._sites.get(site)

    def drop(self, site: str) -> None:
        """The site left."""
        self._sites.pop(site, None)
        self._sorted = None

    def __iter__(self) -> Iterator[LiveSite]:
        """By name. Sites that come or go meanwhile change nothing of it."""
        if self._sorted is None:
            self._sorted = tuple(sorted(self._sites.values(), key=lambda live: live.site))
        return iter(self._sorted)
