"""The rows of the store as frozen dataclasses; `controller.store` reads and writes them.

Field names equal column names. Times named *_wall are Unix seconds; the others
are seconds of the controller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunRow:
    """The run: exactly one row."""

    id: str
    config: str  # RunConfig.to_json
    model: str  # GPTConfig as JSON
    manifest: str  # SHA-256 of the data manifest file
    tokenizer: str  # digest of the tokenizer
    sequence_len: int
    state: str  # RUNNING, FINISHED
    created_wall: float
    started: float
    clock: float  # controller clock at the last step
    tokens: int  # all merged tokens
    cursor: int
    sample_limit: int
    regime: str
    regime_since: float
    regime_seconds: dict[str, float]
    loss_first: float | None
    loss_last: float | None


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A site from which a machine has joined."""

    site: str
    region: str
    machines: int  # how many it has, as its agents say
    fence: int  # the fencing token of the newest join of one of its machines
    left_run: int  # 1: all of its machines have left
    tokens: int  # merged
    joined_wall: float


@dataclass(frozen=True, slots=True)
class MachineRow:
    """One machine of a site, with its agent, key and credentials."""

    site: str
    agent: str
    machine: str  # host name
    devices: int
    address: str  # where the site's other machines reach it
    port: int
    place: int  # in the order of joining
    fence: int  # the fencing token of its latest join
    credential: str  # hashed
    left_run: int  # 1: it has left
    joined_wall: float
    key: str = ""  # the agent's public key, base64
    expires_wall: float = 0.0  # when the credential expires
    next_credential: str = ""  # issued and not used yet, hashed; "": none
    next_expires_wall: float = 0.0
    former_credential: str = ""  # the previous one, hashed; valid for a short time, for requests under way
    former_until_wall: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token that was issued."""

    id: str
    secret: str  # hashed
    created_wall: float
    role: str = "agent"  # agent: a machine may join with it; viewer, operator: it is sent with each request
    site: str = ""  # the only site that may join with it; "": any
    region: str = ""
    uses: int | None = None  # machines that may join with it; None: no limit
    used: int = 0
    expires_wall: float | None = None
    revoked_wall: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """Global weights number `version`."""

    version: int
    round: int | None  # the round that made it; None: the initial weights
    tokens: int
    digest: str  # of the weights' content
    weights: str  # SHA-256 of the weights file
    updates: str  # SHA-256 of the file with the update from the previous version, or ""
    created_wall: float
    kept: int  # 1: the files are still on disk


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round."""

    round: int
    kind: str
    state: str
    base_version: int
    opened_wall: float
    deadline_wall: float
    cut: int  # 1: members shall commit at once, because another site waits
    version: int | None  # the version that it made


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One site in one round: its lease, and its contribution after the commit."""

    round: int
    site: str
    job: str
    fence: int
    state: str
    lease_start: int
    lease_stop: int
    codec: str
    samples: int = 0
    tokens: int = 0
    steps: int = 0
    blob: str = ""
    digest: str = ""
    receipt: str = ""
    seconds: float = 0.0
    loss_first: float | None = None
    loss_mean: float | None = None
    loss_last: float | None = None
    reason: str = ""
    arrived_wall: float | None = None  # when the contribution arrived; the end of the grace if the round ended first
    version: int | None = None  # the version that includes its contribution
    norm: float | None = None  # norm of its pseudo-gradient per square root of its tokens, after the merge


@dataclass(frozen=True, slots=True)
class SwitchedRow:
    """A site whose machines are switched off or being switched; a site without a row is on."""

    site: str
    region: str
    state: str  # controller.fleet.power_states.PowerState; ON: on_pause failed in this pause
    since: float
    since_wall: float
    failures: int = 0  # of on_resume, in a row
    retry_wall: float = 0.0  # when on_resume may run again
    note: str = ""  # how the latest command failed


@dataclass(frozen=True, slots=True)
class ProvisionedRow:
    """A machine of a site with a provisioner; one without a row is ABSENT."""

    site: str
    machine: int
    state: str  # controller.provision.lifecycle.MachineState
    since_wall: float
    key: str = ""  # of the latest request
    native: str = ""  # the provisioner's id
    token: str = ""  # id of its join token
    span: int | None = None  # id of its row in provision_spans
    requested_wall: float = 0.0
    started_wall: float | None = None
    failures: int = 0  # in a row
    retry_wall: float = 0.0
    note: str = ""  # how the latest request failed, or why the machine is released


@dataclass(frozen=True, slots=True)
class SpanRow:
    """The existence of one provisioned machine, for caps and boot times."""

    site: str
    machine: int
    key: str
    price: float  # per hour
    begun_wall: float | None = None  # its start; None: it has not started
    ended_wall: float | None = None
    boot_s: float | None = None  # wall time from the request to the join


@dataclass(frozen=True, slots=True)
class KeptRow:
    """Samples [start, stop) that stay leased to a site's job after its commit."""

    site: str
    fence: int
    job: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class OrderRow:
    """An operator's order for a region, or the end of one. Append-only, and part of the hash chain."""

    of_order: int | None  # the id of the order that this row ends; None: this row is an order
    act: str  # train, pause; or why an order ended: cleared, replaced, expired; ended: an older curtail noted no cause
    region: str
    at: float  # when it takes effect
    until: float | None  # of an order: when it expires
    by_whom: str  # "": nobody, it expired
    reason: str
    wall: float | None  # when it was given; None: an older curtail did not store it


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A file that is served or was uploaded, named by its hash."""

    sha256: str
    path: str
    size: int
    kind: str  # data, weights, update, contribution
    site: str = ""  # the site that uploaded it


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of the event log."""

    id: int
    at: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class SettledRow:
    """The source's later value for one row of the energy ledger; the newest revision counts."""

    entry: int  # id of the row
    basis: str  # marginal, or average
    revision: int  # 1, 2, ...
    mci: float  # gCO2/kWh, mean over the row's time
    kg: float
    source: str
    model: str  # date of the source's model; "": it names none
    asked: float  # Unix time of the request
