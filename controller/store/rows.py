"""The rows of the store as frozen values; `controller.store` reads and writes them.

Field names equal column names. Times named *_wall are Unix seconds, the others
seconds of the controller's clock.
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
    tokens: int  # global tokens: all of them merged
    cursor: int
    sample_limit: int
    regime: str
    regime_since: float
    regime_seconds: dict[str, float]
    loss_first: float | None
    loss_last: float | None


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A site of which a machine ever joined."""

    site: str
    region: str
    machines: int  # how many it has, as its agents say
    fence: int  # the newest epoch that a join of one of its machines began
    left_run: int  # 1: all of its machines said goodbye
    tokens: int  # merged
    joined_wall: float


@dataclass(frozen=True, slots=True)
class MachineRow:
    """One machine of a site, with the agent that speaks for it; what the credential of a request stands for."""

    site: str
    agent: str
    machine: str  # host name
    devices: int
    address: str  # where the site's other machines reach it
    port: int
    place: int  # in the order of joining
    fence: int  # the epoch that its latest join began
    credential: str  # hashed
    left_run: int  # 1: it said goodbye
    joined_wall: float
    key: str = ""  # the agent's public key, base64
    expires_wall: float = 0.0  # when the credential ends
    next_credential: str = ""  # handed out and not used yet, hashed; "": none
    next_expires_wall: float = 0.0
    former_credential: str = ""  # used before, hashed; good for a short time, for what is under way
    former_until_wall: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token that was made."""

    id: str
    secret: str  # hashed
    created_wall: float
    role: str = "agent"  # agent: a machine may join with it; viewer, operator: it is shown with each request
    site: str = ""  # joins as this site only; "": any
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
    round: int | None  # that made it; None: the initial weights
    tokens: int
    digest: str  # of the weights' content
    weights: str  # SHA-256 of the weights file
    updates: str  # SHA-256 of the delta file from the version before, or ""
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
    cut: int  # 1: members shall commit at once, another site waits
    version: int | None  # it made


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One site's part in one round: its lease, and its contribution once committed."""

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
    arrived_wall: float | None = None  # of the contribution; the end of the grace if it was not waited for longer
    version: int | None = None  # that its contribution is part of
    norm: float | None = None  # of its delta per root of its tokens, once merged


@dataclass(frozen=True, slots=True)
class SwitchedRow:
    """A site of which the machines are switched off, or on their way; without a row they are on."""

    site: str
    region: str
    state: str  # controller.fleet.power_states.Power; ON: on_pause failed in this pause
    since: float
    since_wall: float
    failures: int = 0  # of on_resume, in a row
    retry_wall: float = 0.0  # no on_resume before
    note: str = ""  # how the latest command failed


@dataclass(frozen=True, slots=True)
class KeptRow:
    """Samples [start, stop) that stay leased to a site's job beyond what it committed."""

    site: str
    fence: int
    job: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class OrderRow:
    """What a person ordered for a region, or that it ended. Such rows are only added, and are in the hash chain."""

    of_order: int | None  # the id of the order that this ends; None: it is one
    act: str  # train, pause; cleared, replaced, expired: why an order ended; ended: an older curtail did not say why
    region: str
    at: float  # from when on it counts
    until: float | None  # of an order: when it runs out by itself
    by_whom: str  # "": nobody, it ran out
    reason: str
    wall: float | None  # when it was said; None: an older curtail did not keep it


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A file that is served or was uploaded, named by its content."""

    sha256: str
    path: str
    size: int
    kind: str  # data, weights, update, contribution
    site: str = ""  # that uploaded it


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of the event log."""

    id: int
    at: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class SettledRow:
    """What a source says later of one row of the energy ledger; the newest revision counts."""

    entry: int  # id of the row
    basis: str  # marginal, or average
    revision: int  # 1, 2, ...
    mci: float  # gCO2/kWh, mean over the row's time
    kg: float
    source: str
    model: str  # date of the source's model; empty: it names none
    asked: float  # Unix time
