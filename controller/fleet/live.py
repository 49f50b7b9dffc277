"""The live state of each site: soft state, rebuilt from heartbeats.

Nothing here is durable. After a restart no site has a permit until it
reports. A site's state is that of its lead, the machine that communicates for
the site's job (`controller.fleet.crew`). Times are monotonic
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf

from controller.fleet.crew import CrewMachine, CrewRoster, CrewState, form_crew
from controller.store.rows import MachineRow
from curtail import wire
from curtail.carbon.accounting import RUNNING


@dataclass(frozen=True, slots=True)
class Permit:
    """Whether a site may train, until when, and why. Only `controller.scheduling.permits` decides it.

    Times are monotonic seconds; -inf: never.
    """

    granted: bool
    until: float  # the site's job trains until then, even if `granted` is withdrawn
    hold_until: float  # its weights may stay on idle GPUs until then
    reason: str

    def is_live(self, now: float) -> bool:
        """Whether the site's job may still train, by the last reply to its agent."""
        return self.until > now

    def holds(self, now: float) -> bool:
        """Whether its weights may stay on its GPUs."""
        return self.hold_until > now

    def valid_s(self, now: float) -> float:
        """Seconds for which the permit is given from `now` on."""
        return max(0.0, self.until - now) if self.granted else 0.0

    def hold_s(self, now: float) -> float:
        """Seconds for which the weights may stay on idle GPUs from `now` on."""
        return max(0.0, self.hold_until - now)


UNHEARD = Permit(granted=False, until=-inf, hold_until=-inf, reason="not heard from yet")
"""Permit of a site whose agent has not reported since the controller's start."""


@dataclass(slots=True)
class LiveMachine:
    """One machine of a site, by its last messages."""

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
    power: wire.Power | None = None  # counts of its meter; None: it has no meter
    seen: float | None = None

    @classmethod
    def of(cls, row: MachineRow) -> LiveMachine:
        """A machine from the store that has not reported yet."""
        return cls(row.agent, row.address, row.port, row.place)

    def take(self, beat: wire.Heartbeat, now: float) -> None:
        """Take over a heartbeat."""
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
        """Whether it reported within `lost_after` seconds."""
        return self.seen is not None and now - self.seen <= lost_after

    def runs(self, crew: str) -> bool:
        """Whether it runs the job of that crew, by its last report."""
        return self.job is not None and self.crew == crew

    def described(self) -> CrewMachine:
        """The inputs for the choice of a crew."""
        return CrewMachine(
            self.agent, self.address, self.port, self.place, self.crew, self.job is not None, self.rank, self.size
        )


@dataclass(slots=True)
class LiveSite:
    """One site, by the last messages of its machines."""

    site: str
    region: str
    expected: int = 1  # machines
    machines: dict[str, LiveMachine] = field(default_factory=dict)  # by agent
    crew_state: CrewState = field(default_factory=CrewState)
    former: CrewRoster | None = None  # the crew before
    led_by: str | None = None  # the lead of the latest crew
    state: str = "JOINING"
    phase: str = "paused"
    job: str | None = None
    watts: float | None = None  # of all machines, if all of them measure
    note: str = ""
    seen: float | None = None
    permit: Permit = UNHEARD
    held_since: float | None = None  # controller's clock; since when it holds
    promised: float | None = None  # since when its replies grant a permit
    checked_out_job: str | None = None  # the job that checked out work
    working_on: int | None = None  # the round of its job's last report
    round_tokens: int = 0  # trained in it
    step: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0

    def heard(self, now: float, lost_after: float) -> bool:
        """Whether it reported within `lost_after` seconds."""
        return self.seen is not None and now - self.seen <= lost_after

    def running(self, now: float, lost_after: float) -> bool:
        """Whether its weights are on its GPUs or loading; also for `lost_after` seconds after a permit was granted."""
        if self.phase in RUNNING:
            return True
        return self.phase == "paused" and self.promised is not None and now - self.promised <= lost_after

    def ready(self, now: float, lost_after: float) -> bool:
        """Whether it may train and its job has asked for work."""
        return self.permit.granted and self.heard(now, lost_after) and self.job_asked()

    def job_asked(self) -> bool:
        """Whether its running job has asked for work. The first request may precede the heartbeat."""
        return self.checked_out_job is not None and self.job in (None, self.checked_out_job)

    # -- machines --------------------------------------------------------------

    @property
    def lead(self) -> LiveMachine | None:
        """The machine whose reports stand for the site; without a crew the first with a job, or that has reported."""
        if self.crew_state.crew is not None and self.crew_state.crew.lead in self.machines:
            return self.machines[self.crew_state.crew.lead]
        machines = self.machines.values()
        return min(machines, key=lambda m: (m.job is None, m.seen is None, m.place), default=None)

    def show(self) -> None:
        """Take over the lead's report, and sum the measured power of all machines."""
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
        """Whether this machine is the lead, or no crew is known."""
        return self.crew_state.crew is None or self.crew_state.crew.lead == agent

    def gather(self, now: float, lost_after: float, new_id: Callable[[], str]) -> CrewRoster | None:
        """A new crew if the present machines have changed, else None.

        Args: new_id: makes the crew's id; not called at a site of one machine, which has no crew.
        """
        if self.expected == 1:
            return None
        before = self.crew_state.crew
        here = [m.described() for m in self.machines.values() if m.heard(now, lost_after) and not self._going(m)]
        self.crew_state = form_crew(self.crew_state, here, self.expected, now, lost_after, new_id())
        crew = self.crew_state.crew
        if crew is None or (before is not None and before.id == crew.id):
            return None
        self.former = before or self.former
        return crew

    def _going(self, machine: LiveMachine) -> bool:
        """Whether it drains while its lead trains on. Then the job must end while all machines can still step."""
        crew, lead = self.crew_state.crew, self.lead
        if crew is None or lead is None or lead is machine or not machine.runs(crew.id) or not lead.runs(crew.id):
            return False
        return self.permit.granted and machine.phase == "drain" and lead.phase != "drain"

    def waits(self, machine: LiveMachine, now: float, lost_after: float) -> str:
        """Why this machine must wait although its region may train; "": it need not."""
        crew = self.crew_state.crew
        if self.expected == 1 or (crew is None and machine.job is not None):
            return ""  # after a restart of the controller a job continues until all machines have reported
        if crew is None or machine.agent not in crew.agents:
            count = sum(m.heard(now, lost_after) for m in self.machines.values())
            return f"waiting for the site's other machines: {count} of {self.expected} here"
        if machine.job is not None:
            return ""
        if any(m.job is not None and m.crew != crew.id for m in self._members(crew)):
            return "waiting for the site's other machines to end the job before"
        return ""

    def crew_of(self, machine: LiveMachine, now: float, lost_after: float) -> wire.Crew | None:
        """The crew as it is reported to the machine."""
        crew = self.crew_state.crew
        rank = None if crew is None else crew.rank(machine.agent)
        if crew is None or rank is None:
            return None
        broken = machine.job is not None and machine.crew != crew.id and not self._intact(machine.crew, now, lost_after)
        return wire.Crew(crew.id, rank, len(crew.agents), crew.endpoint, broken)

    def _intact(self, crew: str, now: float, lost_after: float) -> bool:
        """Whether the job of that crew can make another step, by the last reports."""
        old = self.former
        if old is None or old.id != crew:
            return False
        members = self._members(old)
        return len(members) == len(old.agents) and all(m.runs(crew) and m.heard(now, lost_after) for m in members)

    def _members(self, crew: CrewRoster) -> list[LiveMachine]:
        return [self.machines[agent] for agent in crew.agents if agent in self.machines]


class Fleet:
    """All sites by name."""

    def __init__(self) -> None:
        self._sites: dict[str, LiveSite] = {}
        self._sorted: tuple[LiveSite, ...] | None = None  # None: sites were added or dropped

    def __len__(self) -> int:
        return len(self._sites)

    def add(self, site: str, region: str, expected: int = 1, machines: Iterable[LiveMachine] = ()) -> LiveSite:
        """Add a site."""
        self._sites[site] = LiveSite(site, region, expected, {machine.agent: machine for machine in machines})
        self._sorted = None
        return self._sites[site]

    def find(self, site: str) -> LiveSite | None:
        """The site; None: it is not live."""
        return self._sites.get(site)

    def drop(self, site: str) -> None:
        """Remove a site that left."""
        self._sites.pop(site, None)
        self._sorted = None

    def __iter__(self) -> Iterator[LiveSite]:
        """By name; changes during the iteration do not affect it."""
        if self._sorted is None:
            self._sorted = tuple(sorted(self._sites.values(), key=lambda live: live.site))
        return iter(self._sorted)
