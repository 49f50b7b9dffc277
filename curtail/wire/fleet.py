"""Between an agent and the controller: joining, heartbeats and leaving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curtail.wire.bounds import Count, Joules, Name, NameOrEmpty, Note, Real, Seconds, String, Text, Watts, Whole, Word

Machines = Annotated[int, Whole(1, 64)]
Rank = Annotated[int, Whole(0, 63)]
Interval = Annotated[float, Real(0.01, 1e6)]  # seconds between two heartbeats
Address = Annotated[str, Text(255, r"[A-Za-z0-9_.:%\[\]\-]*", "an address or host name, or empty")]
PublicKey = Annotated[str, Text(128, r"[A-Za-z0-9+/=]*", "a public key in base64, or empty")]
Methods = Annotated[str, Text(128, r"[A-Za-z0-9_.+\-]*", "names of methods with + between them")]


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Agent -> controller, POST /v1/join. `token` admits; everything later uses the credential."""

    protocol: Annotated[int, Whole(0, 10_000)]
    agent: Name  # stable identity of this agent's folder, 32 hex digits
    site: Name
    region: Name
    machine: Annotated[str, Text(255)]  # host name, for people
    devices: Annotated[int, Whole(1, 4096)]  # GPUs, or CPU ranks
    token: Annotated[str, Text(4096)]
    machines: Machines = 1  # how many machines the site has, this one among them; all of them say the same
    address: Address = ""  # where the site's other machines reach this one; "" if there are none
    port: Annotated[int, Whole(0, 65535)] = 0  # free on this machine for the rendezvous of the site's job
    key: PublicKey = ""  # this agent's public key; the request is signed with it (`curtail.security.signing`)
    replace: bool = False  # with an operator's token: take the place of a machine that has another key


@dataclass(frozen=True, slots=True)
class JoinReply:
    """Controller -> agent. `fence` is the epoch of the site: older ones are refused from now on."""

    credential: String
    fence: Count
    heartbeat_s: Interval
    run: String


@dataclass(frozen=True, slots=True)
class Power:
    """What a machine's meter has counted since the meter was begun; a lost report loses nothing."""

    meter: NameOrEmpty  # names the beginning: with another name the counts began anew
    method: Methods  # nvml-total-energy, nvml-power-integrated, rapl, meter, constant; several with +
    seconds: Seconds  # of real time for which there are samples
    joules: Joules | None  # of the whole machine; None: a part of it is not measured
    gpu_joules: Joules | None  # of the GPUs; None: not known apart
    host_joules: Joules | None  # of the rest


def counts(power: Power) -> tuple[float | None, ...]:
    """All that it has counted: seconds, and J of the machine, of its GPUs and of the rest."""
    return power.seconds, power.joules, power.gpu_joules, power.host_joules


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Agent -> controller, POST /v1/heartbeat."""

    agent: Name
    site: Name
    fence: Count
    state: Word  # agent.lifecycle.State value
    phase: Word  # energy phase: paused, start, train, sync, hold, drain
    job: Name | None  # the job that is alive, or None
    watts: Watts | None  # measured by the machine; None: the controller uses the run's model
    note: Note  # why the agent waits, or how the last job ended
    crew: NameOrEmpty = ""  # the crew of its latest job, whether that is alive or over; "": none, or a machine alone
    crew_rank: Rank = 0  # its place in that crew
    crew_size: Machines = 1
    power: Power | None = None  # counted by the machine's meter; None: there is none


@dataclass(frozen=True, slots=True)
class Crew:
    """The machines of a site that run one job together, as one of them needs to know it."""

    id: String  # of one job: it is never started twice
    rank: Rank  # this machine's place; 0 leads
    size: Machines
    endpoint: String  # host:port of the rendezvous at the lead
    broken: bool  # of the crew whose job this machine still runs another one is gone: it cannot make another step


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """Controller -> agent. Without a granted and unexpired permit nothing trains."""

    granted: bool
    valid_s: Seconds  # the permit ends by itself after so many seconds
    reason: String
    finished: bool  # the token budget is reached
    heartbeat_s: Interval
    regime: String
    crew: Crew | None = None  # None: the site has one machine, or it is not decided yet, or goes on without this one
    credential: String | None = None  # to be used from now on; None: go on with the old one
    hold_s: Seconds = 0.0  # so long the job may stay, its weights on idle GPUs, without training beyond `valid_s`


@dataclass(frozen=True, slots=True)
class LeaveRequest:
    """Agent -> controller, POST /v1/leave: the agent stops for good."""

    agent: Name
    site: Name
    fence: Count
    reason: Note
