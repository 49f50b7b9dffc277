"""Every path and body of the HTTP contract between agents, jobs and the controller.

Bodies are JSON objects of the frozen dataclasses below; `encode` and `decode`
are strict in both directions: an unknown, missing or mistyped field or a
number that is not finite is a `WireError` that names the field. Weights and
token files travel as raw bytes named by their SHA-256, never as JSON. Nothing
here opens a connection. Durations are in seconds, so that the two ends need
not agree on the time of day.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from curtail.errors import WireError

PROTOCOL = 4
"""Raised whenever a message changes; both ends refuse another number at join."""

PREFIX = "/v1"
JOIN = "/v1/join"
HEARTBEAT = "/v1/heartbeat"
LEAVE = "/v1/leave"
RUN = "/v1/run"
CHECKOUT = "/v1/rounds/checkout"
PROGRESS = "/v1/rounds/progress"
COMMIT = "/v1/rounds/commit"
BLOBS = "/v1/blobs"
BLOB = "/v1/blobs/{sha256}"
PART = "/v1/blobs/{sha256}/parts/{number}"
BLOB_COMMIT = "/v1/blobs/{sha256}/commit"
STATUS = "/v1/status"
HEALTH = "/healthz"

PART_BYTES = 16 * 1024 * 1024
"""Size of all parts of an upload but the last; bounds what one request holds in memory."""

MAX_BODY = 1024 * 1024
"""Bytes of the largest JSON body that is read."""


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


@dataclass(frozen=True, slots=True)
class JoinReply:
    """Controller -> agent. `fence` is the epoch of the site: older ones are refused from now on."""

    credential: str
    fence: int
    heartbeat_s: float
    run: str


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Controller -> job, GET /v1/run: everything that is fixed for the whole run."""

    run: str
    name: str
    seed: int
    preset: str
    model_config: dict[str, int | float | str | bool]
    manifest: str  # SHA-256 of the data manifest, fetched as a blob
    tokenizer: str  # digest of the tokenizer
    sequence_len: int
    token_budget: int
    batch_samples: int  # per optimizer step of a site
    device_batch_samples: int  # per rank and pass; 0: each site finds out what fits
    recipe: str  # every number of it, as JSON
    codec: str
    overlap: bool  # a site trains on while its contribution travels and is merged
    rewarm_steps: int  # steps over which a site without inner state raises its learning rate
    outage_s: float  # how long a finished contribution waits for a controller that cannot be reached


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Agent -> controller, POST /v1/heartbeat."""

    agent: str
    site: str
    fence: int
    state: str  # agent.lifecycle.State value
    phase: str  # energy phase: paused, start, train, sync, drain
    job: str | None  # the job that is alive, or None
    watts: float | None  # measured by the machine; None: the controller uses the run's model
    note: str  # why the agent waits, or how the last job ended
    crew: str = ""  # the crew of its latest job, whether that is alive or over; "": none, or a machine alone
    crew_rank: int = 0  # its place in that crew
    crew_size: int = 1


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


@dataclass(frozen=True, slots=True)
class LeaveRequest:
    """Agent -> controller, POST /v1/leave: the agent stops for good."""

    agent: str
    site: str
    fence: int
    reason: str


@dataclass(frozen=True, slots=True)
class CheckoutRequest:
    """Job -> controller, POST /v1/rounds/checkout."""

    site: str
    fence: int
    job: str
    held_version: int | None  # version of the weights in memory, None: none
    held_digest: str | None
    closing: bool  # the job drains and only hands in what it trained on its kept samples; needs no permit


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a site does in one round."""

    round: int
    base_version: int
    base_digest: str
    fetch: str  # none: already held; update: apply `blob` to the held version; weights: load `blob`
    blob: str  # SHA-256 of the file to fetch, empty for none
    lease_start: int  # samples [lease_start, lease_stop) of the packed stream
    lease_stop: int
    train_s: float  # commit after so many seconds at the latest
    tokens_before: int  # global tokens at the base version
    tokens_per_step: int  # global tokens that pass while this site does one step
    codec: str  # weights: exact float32 weights (sole contributor); else the codec of a delta
    members: int
    steps: int  # contribute after so many inner steps at most; steps * batch samples <= the lease
    keep: bool  # the job may train on beyond what it commits, on the rest of its lease


@dataclass(frozen=True, slots=True)
class CheckoutReply:
    """Controller -> job. `kind`: train, wait (ask again after `retry_s`), leave (exit)."""

    kind: str
    reason: str
    retry_s: float
    assignment: Assignment | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Job -> controller, POST /v1/rounds/progress, about once a second."""

    site: str
    fence: int
    job: str
    round: int
    step: int  # inner steps done in this round
    tokens: int  # tokens done in this round
    loss: float | None  # of the latest step, mean over ranks
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class ProgressReply:
    """Controller -> job. `end_round`: commit at the next step, another site waits."""

    end_round: bool
    reason: str


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """Job -> controller, POST /v1/rounds/commit; a repeat gets the first receipt."""

    site: str
    fence: int
    job: str
    round: int
    base_version: int
    base_digest: str
    steps: int
    samples: int  # consumed prefix of the lease
    tokens: int  # samples * sequence_len
    blob: str
    codec: str
    digest: str  # of the exact weights when codec is "weights", else empty
    loss_first: float | None
    loss_mean: float | None
    loss_last: float | None
    seconds: float  # spent in inner steps
    keep: bool  # the job trains on: samples [lease_start + samples, lease_stop) stay leased to it


@dataclass(frozen=True, slots=True)
class Receipt:
    """Controller -> job: the contribution is durable."""

    receipt: str
    round: int
    site: str
    tokens: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class BlobOffer:
    """Job -> controller, POST /v1/blobs: reserves before bytes are sent."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class BlobStatus:
    """Controller -> job: which parts are still missing."""

    sha256: str
    size: int
    part_bytes: int
    missing: tuple[int, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Ack:
    """A request was carried out."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """Any refused request: what was wrong and what to do."""

    error: str  # name of the CurtailError
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One region in the snapshot."""

    region: str
    mci: float | None  # gCO2/kWh, None: unknown
    threshold: float
    age_s: float | None
    source: str
    granted: bool
    reason: str
    history: tuple[float | None, ...]  # latest readings, oldest first
    grid_w: float | None  # power drawn from the grid by the region's microgrid (Vessim)


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """One site in the snapshot."""

    site: str
    region: str
    state: str
    phase: str
    granted: bool
    reason: str
    round: int | None
    step: int
    loss: float | None
    tokens_per_s: float
    tokens: int  # committed by this site so far
    seen_s: float | None  # since the last heartbeat; None: not since the controller's start
    energy_kwh: float
    kg_co2: float


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """The open round in the snapshot."""

    round: int
    state: str
    base_version: int
    members: tuple[str, ...]
    committed: tuple[str, ...]
    left_s: float


@dataclass(frozen=True, slots=True)
class EventStatus:
    """One line of the event log."""

    id: int
    at: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class EnergyStatus:
    """Totals of the energy ledger. Attributed: start, train, sync, drain; standing: paused."""

    attributed_kwh: float
    standing_kwh: float
    kg_attributed: float
    kg_standing: float
    curtailed_pct: float  # share of the attributed energy drawn inside curtailment windows
    kg_always_on: float | None  # same training without waiting; None: nothing trained yet
    unknown_kwh: float  # drawn while the MCI was unknown; its kg are not in the totals


@dataclass(frozen=True, slots=True)
class Status:
    """Controller -> anyone, GET /v1/status: one snapshot for every view."""

    protocol: int
    run: str
    name: str
    state: str  # RUNNING, FINISHED
    now: float  # controller clock
    started: float  # controller clock at the start of the run
    speed: float
    regime: str
    regime_since: float
    reason: str
    regime_seconds: dict[str, float]
    tokens: int
    token_budget: int
    version: int
    rounds: int  # merged rounds
    round: RoundStatus | None
    loss_first: float | None
    loss_last: float | None
    checkpoint: str
    energy: EnergyStatus
    regions: tuple[RegionStatus, ...]
    sites: tuple[SiteStatus, ...]
    events: tuple[EventStatus, ...]
    signal_ended: bool  # every region's trace has ended


Message = TypeVar("Message")


def encode(message: Any) -> bytes:
    """`message` (a dataclass of this module) as JSON.

    Raises: WireError: a number is NaN or infinite.
    """
    try:
        return json.dumps(dataclasses.asdict(message), allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise WireError(f"{type(message).__name__} holds a number that is not finite") from error


def decode(kind: type[Message], body: bytes | str) -> Message:
    """The `kind` that `body` holds.

    Raises: WireError: no JSON object, or a field is unknown, missing or mistyped.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{kind.__name__}: the body is no valid JSON") from error
    return typing.cast(Message, _build(kind, value, kind.__name__))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _build(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        return _build_union(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise WireError(f"{where}: a list is needed, not {_name(value)}")
        item = typing.get_args(kind)[0]
        return tuple(_build(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise WireError(f"{where}: an object is needed, not {_name(value)}")
        item = typing.get_args(kind)[1]
        return {key: _build(item, entry, f"{where}.{key}") for key, entry in value.items()}
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        if not math.isfinite(number):
            raise WireError(f"{where}: the number is not finite")
        return number
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise WireError(f"{where}: {getattr(kind, '__name__', kind)} is needed, not {_name(value)}")


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{where}: an object is needed, not {_name(value)}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    strange = sorted(set(value) - set(names))
    if strange:
        raise WireError(f"{where}: unknown field {strange[0]!r}")
    missing = [name for name in names if name not in value]
    if missing:
        raise WireError(f"{where}: field {missing[0]!r} is missing")
    return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in names})


def _build_union(kind: Any, value: Any, where: str) -> Any:
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    concrete = [option for option in options if option is not type(None)]
    # An exact type match first: JSON 1 must stay an int in int | float.
    for option in concrete:
        if isinstance(option, type) and type(value) is option:
            return _build(option, value, where)
    if len(concrete) == 1:
        return _build(concrete[0], value, where)
    names = " or ".join(getattr(option, "__name__", str(option)) for option in concrete)
    raise WireError(f"{where}: {names} is needed, not {_name(value)}")


def _name(value: Any) -> str:
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(value), type(value).__name__)
