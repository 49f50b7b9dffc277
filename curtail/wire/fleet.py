"""Messages between an agent and the controller: join, heartbeat, leave."""

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
    """Agent -> controller, POST /v1/join, with a join token; all later requests use the credential."""

    protocol: Annotated[int, Whole(0, 10_000)]
    agent: Name  # stable identity of this agent's folder, 32 hex digits
    site: Name
    region: Name
    machine: Annotated[str, Text(255)]  # host name, for display
    devices: Annotated[int, Whole(1, 4096)]  # GPUs, or CPU ranks
    token: Annotated[str, Text(4096)]
    machines: Machines = 1  # number of machines of the site, including this one; all of them must report the same
    address: Address = ""  # address at which the site's other machines reach this one; "" if there are none
    port: Annotated[int, Whole(0, 65535)] = 0  # free port for the rendezvous of the site's job
    key: PublicKey = ""  # this agent's public key; the request is signed with it (`curtail.security.signing`)
    replace: bool = False  # with an operator's token: replace a machine that has another key


@dataclass(frozen=True, slots=True)
class JoinReply:
    """Controller -> agent. `fence` is the site's fencing token: requests with older ones are refused from now on."""

    credential: String
    fence: Count
    heartbeat_s: Interval
    run: String


@dataclass(frozen=True, slots=True)
class Power:
    """Counters of a machine's meter since they began. They are cumulative, so a lost heartbeat loses nothing."""

    meter: NameOrEmpty  # id of the counters: a new id means that they began again at zero
    method: Methods  # nvml-total-energy, nvml-power-integrated, rapl, meter, constant; several with +
    seconds: Seconds  # real time covered by samples
    joules: Joules | None  # J of the whole machine; None: a part of it is not measured
    gpu_joules: Joules | None  # J of the GPUs; None: not measured separately
    host_joules: Joules | None  # J of the rest


def counts(power: Power) -> tuple[float | None, ...]:
    """All counters: seconds, and J of the machine, of its GPUs and of the rest."""
    return power.seconds, power.joules, power.gpu_joules, power.host_joules


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Agent -> controller, POST /v1/heartbeat."""

    agent: Name
    site: Name
    fence: Count
    state: Word  # agent.lifecycle.State value
    phase: Word  # energy phase: paused, start, train, sync, hold, drain
    job: Name | None  # the running job, or None
    watts: Watts | None  # W, measured by the machine; None: the controller uses the run file's figure
    note: Note  # why the agent waits, or how the last job ended
    crew: NameOrEmpty = ""  # the crew of its latest job, running or ended; "": none, or a site of one machine
    crew_rank: Rank = 0  # its rank in that crew
    crew_size: Machines = 1
    power: Power | None = None  # counters of the machine's meter; None: it has no meter


@dataclass(frozen=True, slots=True)
class Crew:
    """The crew of a site's job, as one of its machines sees it."""

    id: String  # a crew runs one job, never two
    rank: Rank  # this machine's rank; 0 is the lead
    size: Machines
    endpoint: String  # host:port of the rendezvous at the lead
    broken: bool  # a machine of the crew whose job still runs here is gone, so that job cannot make another step


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """Controller -> agent. Without a granted and unexpired permit nothing trains."""

    granted: bool
    valid_s: Seconds  # the permit expires after so many seconds
    reason: String
    finished: bool  # the token budget is reached
    heartbeat_s: Interval
    regime: String
    crew: Crew | None = None  # None: the site has one machine, or no crew yet, or its crew is without this machine
    credential: String | None = None  # replaces the old one; None: keep it
    hold_s: Seconds = 0.0  # the job may keep its weights on idle GPUs for so long, without training beyond `valid_s`


@dataclass(frozen=True, slots=True)
class LeaveRequest:
    """Agent -> controller, POST /v1/leave: the agent leaves for good."""

    agent: Name
    site: Name
    fence: Count
    reason: Note
