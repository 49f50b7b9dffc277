"""Every path and body of the HTTP contract between agents, jobs and the controller.

Bodies are JSON objects of the frozen dataclasses below; `encode` and `decode`
are strict in both directions: an unknown, missing or mistyped field, a number
that is not finite, or a value that `curtail.limits` does not allow is a
`WireError` that names the field. Weights and
token files travel as raw bytes named by their SHA-256, never as JSON. Nothing
here opens a connection. Durations are in seconds, so that the two ends need
not agree on the time of day.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from curtail import limits
from curtail.errors import WireError

PROTOCOL = 5
"""Raised whenever a message changes; both ends refuse another number at join."""

PREFIX = "/v1"
JOIN = "/v1/join"
CACERTS = "/v1/cacerts"
CREDENTIAL = "/v1/credential"
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
OVERRIDE = "/v1/override"
TOKENS = "/v1/tokens"
TOKEN_REVOKE = "/v1/tokens/revoke"
NODES = "/v1/nodes"
NODE_REMOVE = "/v1/nodes/remove"
HEALTH = "/healthz"

PART_BYTES = 16 * 1024 * 1024
"""Size of all parts of an upload but the last; bounds what one request holds in memory."""

MAX_BODY = 1024 * 1024
"""Bytes of the largest JSON answer that is read; what a controller reads is bounded by `limits.MAX_REQUEST`."""

KEY = limits.Text(256)
"""A key of an object whose keys the contract does not name."""


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
    key: str = ""  # this agent's public key; the request is signed with it (`curtail.signing`)
    replace: bool = False  # with an operator's token: take the place of a machine that has another key


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
class OverrideRequest:
    """Operator -> controller, POST /v1/override: an order for all sites of a region, limited in time."""

    region: str
    action: str  # train, pause, clear
    seconds: float  # of the controller's clock; nothing to `clear`
    by: str  # who orders it
    reason: str


@dataclass(frozen=True, slots=True)
class OverrideStatus:
    """An order in force in the snapshot."""

    train: bool  # False: pause
    left_s: float  # controller clock
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """What the run is to achieve, in the snapshot; times are the controller's clock."""

    reason: str  # why the price is what it is, or why there is none
    price: float | None  # gCO2/kWh in force; None: the thresholds are
    work_s: float | None  # training that is left, seconds of one site; None: not known yet
    tokens_per_s: float | None  # of one site that trains
    known_by: str  # how that is known: measured, reported, assumed, or ""
    deadline: float | None
    deadline_left_s: float | None
    budget_kg: float | None
    budget_left_kg: float | None


@dataclass(frozen=True, slots=True)
class CostsStatus:
    """What a start, a stop and an exchange of a site cost, in the snapshot; seconds of the controller's clock, W."""

    start_s: float
    stop_s: float
    sync_s: float
    train_w: float
    idle_w: float
    paused_w: float
    starts: int  # of the latest, how many were measured; below three the run file's figure counts too


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
    solar_w: float | None = None  # that its panels give; None: it has none
    battery_w: float | None = None  # above 0 its battery is charged, below it is discharged; None: it has none
    battery_soc: float | None = None  # share of the capacity that it holds, 0 to 1
    override: OverrideStatus | None = None


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
    costs: CostsStatus | None = None


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
class LateStatus:
    """A site's part in a round that went on without it."""

    site: str
    round: int
    state: str  # LATE: it may still contribute; COMMITTED: its contribution waits for the next merge
    samples: int  # leased, or contributed


@dataclass(frozen=True, slots=True)
class KeptStatus:
    """Samples that stay with a site's job beyond what it committed: it trains ahead on them."""

    site: str
    samples: int


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
    own_kwh: float = 0.0  # from the regions' panels and batteries; in no other figure here
    ledger_records: int = 0  # of the hash chain: rows, readings, settlements
    ledger_head: str = ""  # its last hash; noted elsewhere it shows that nothing before it was changed


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
    plan: PlanStatus | None = None
    late: tuple[LateStatus, ...] = ()
    kept: tuple[KeptStatus, ...] = ()


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

    Raises: WireError: no JSON object, a field is unknown, missing, given twice, mistyped, or not what
        `curtail.limits` allows.
    """
    try:
        # As text: JSON in bytes might also be UTF-16 or UTF-32.
        text = body if isinstance(body, str) else bytes(body).decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{kind.__name__}: the body is no valid JSON") from error
    return typing.cast(Message, _build(kind, value, kind.__name__, None))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _build(kind: Any, value: Any, where: str, rule: limits.Rule | None) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        return _build_union(kind, value, where, rule)
    if origin is tuple:
        if not isinstance(value, list):
            raise WireError(f"{where}: a list is needed, not {_name(value)}")
        _check_count(value, where)
        item = typing.get_args(kind)[0]
        return tuple(_build(item, entry, f"{where}[{i}]", rule) for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise WireError(f"{where}: an object is needed, not {_name(value)}")
        _check_count(value, where)
        item = typing.get_args(kind)[1]
        for key in value:
            limits.check(KEY, key, f"{where}: a key")
        return {key: _build(item, entry, f"{where}.{key}", rule) for key, entry in value.items()}
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise WireError(f"{where}: the number is not finite")
        limits.check(rule, number, where)
        return number
    if kind in (int, str, bool) and type(value) is kind:
        limits.check(rule, value, where)
        return value
    raise WireError(f"{where}: {getattr(kind, '__name__', kind)} is needed, not {_name(value)}")


def _check_count(value: Collection[Any], where: str) -> None:
    if len(value) > limits.MOST_ENTRIES:
        raise WireError(f"{where}: {len(value)} entries are too many, at most {limits.MOST_ENTRIES} are allowed")


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{where}: an object is needed, not {_name(value)}")
    hints = hints_of(kind)
    strange = sorted(set(value) - set(hints))
    if strange:
        raise WireError(f"{where}: unknown field {limits.clean(strange[0], 64)!r}")
    missing = [name for name in hints if name not in value]
    if missing:
        raise WireError(f"{where}: field {missing[0]!r} is missing")
    return kind(
        **{
            name: _build(hint, value[name], f"{where}.{name}", limits.rule_of(kind.__name__, name))
            for name, hint in hints.items()
        }
    )


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The fields of a message, in order, each with its type."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _build_union(kind: Any, value: Any, where: str, rule: limits.Rule | None) -> Any:
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    concrete = [option for option in options if option is not type(None)]
    # An exact type match first: JSON 1 must stay an int in int | float.
    for option in concrete:
        if isinstance(option, type) and type(value) is option:
            return _build(option, value, where, rule)
    if len(concrete) == 1:
        return _build(concrete[0], value, where, rule)
    names = " or ".join(getattr(option, "__name__", str(option)) for option in concrete)
    raise WireError(f"{where}: {names} is needed, not {_name(value)}")


def _name(value: Any) -> str:
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(value), type(value).__name__)
