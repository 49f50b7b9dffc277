"""Between an agent and the controller: joining, heartbeats and leaving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Agent -> controller, POST /v1/join. `token` admits; everything later uses the credential."""

    protocol: int
    agent: str  # stable identity of this agent's folder, 32 hex digits
    site: str
    region: str
    machine: str  # host name, for people
    devices: int  # GPUs, or CPU ranks
    token: str
    machines: int = 1  # how many machines the site has, this one among them; all of them say the same
    address: str = ""  # where the site's other machines reach this one; "" if there are none
    port: int = 0  # free on this machine for the rendezvous of the site's job
    key: str = ""  # this agent's public key; the request is signed with it (`curtail.security.signing`)
    replace: bool = False  # with an operator's token: take the place of a machine that has another key


@dataclass(frozen=True, slots=True)
class JoinReply:
    """Controller -> agent. `fence` is the epoch of the site: older ones are refused from now on."""

    credential: str
    fence: int
    heartbeat_s: float
    run: str


@dataclass(frozen=True, slots=True)
class Power:
    """What a machine's meter has counted since the meter was begun; a lost report loses nothing."""

    meter: str  # names the beginning: with another name the counts began anew
    method: str  # nvml-total-energy, nvml-power-integrated, rapl, meter, constant; several with +
    seconds: float  # of real time for which there are samples
    joules: float | None  # of the whole machine; None: a part of it is not measured
    gpu_joules: float | None  # of the GPUs; None: not known apart
    host_joules: float | None  # of the rest


def counts(power: Power) -> tuple[float | None, ...]:
    """All that it has counted: seconds, and J of the machine, of its GPUs and of the rest."""
    return power.seconds, power.joules, power.gpu_joules, power.host_joules


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Agent -> controller, POST /v1/heartbeat."""

    agent: str
    site: str
    fence: int
    state: str  # agent.lifecycle.State value
    phase: str  # energy phase: paused, start, train, sync, hold, drain
    job: str | None  # the job that is alive, or None
    watts: float | None  # measured by the machine; None: the controller uses the run's model
    note: str  # why the agent waits, or how the last job ended
    crew: str = ""  # the crew of its latest job, whether that is alive or over; "": none, or a machine alone
    crew_rank: int = 0  # its place in that crew
    crew_size: int = 1
    power: Power | None = None  # counted by the machine's meter; None: there is none


@dataclass(frozen=True, slots=True)
class Crew:
    """The machines of a site that run one job together, as one of them needs to know it."""

    id: str  # of one job: it is never started twice
    rank: int  # this machine's place; 0 leads
    size: int
    endpoint: str  # host:port of the rendezvous at the lead
    broken: bool  # of the crew whose job this machine still runs another one is gone: it cannot make another step


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """Controller -> agent. Without a granted and unexpired permit nothing trains."""

    granted: bool
    valid_s: float  # the permit ends by itself after so many seconds
    reason: str
    finished: bool  # the token budget is reached
    heartbeat_s: float
    regime: str
    crew: Crew | None = None  # None: the site has one machine, or it is not decided yet, or goes on without this one
    credential: str | None = None  # to be used from now on; None: go on with the old one
    hold_s: float = 0.0  # so long the job may stay, its weights on idle GPUs, without training beyond `valid_s`


@dataclass(frozen=True, slots=True)
class LeaveRequest:
    """Agent -> controller, POST /v1/leave: the agent stops for good."""

    agent: str
    site: str
    fence: int
    reason: str
