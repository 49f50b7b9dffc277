"""Between a site's job and the controller: what is fixed for the run, and the steps of a round.

Between a site's job and the controller: files, sent in parts and named by their SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass


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
    rate_factor: float  # on the learning rates of the schedule, because others train at once; alone 1
    memory_factor: float  # on the steps that Muon's momentum remembers, likewise


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
