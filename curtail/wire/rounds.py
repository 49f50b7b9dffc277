"""Messages between a site's job and the controller: the run's constants, rounds, and files.

Files are sent in parts and named by their SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curtail.wire.bounds import (
    Count,
    Integer,
    Key,
    Loss,
    Name,
    Number,
    Real,
    Seconds,
    Sha256,
    Sha256OrEmpty,
    String,
    Version,
    Whole,
    Word,
)

Factor = Annotated[float, Real(0.0, 1e6)]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Controller -> job, GET /v1/run: the constants of the run."""

    run: String
    name: String
    seed: Integer
    preset: String
    model_config: dict[Key, Integer | Number | String | bool]
    manifest: Sha256  # SHA-256 of the data manifest, fetched as a blob
    tokenizer: String  # digest of the tokenizer
    sequence_len: Annotated[int, Whole(1, 2**31)]
    token_budget: Count
    batch_samples: Annotated[int, Whole(1)]  # per optimizer step of a site
    device_batch_samples: Count  # per rank and pass; 0: each site determines what fits
    recipe: String  # of the optimizer and schedule, as JSON
    codec: String
    overlap: bool  # a site trains on while its contribution is uploaded and merged
    rewarm_steps: Count  # learning-rate warm-up steps of a site without optimizer state
    outage_s: Seconds  # how long a job retries to upload a finished contribution


@dataclass(frozen=True, slots=True)
class CheckoutRequest:
    """Job -> controller, POST /v1/rounds/checkout."""

    site: Name
    fence: Count
    job: Name
    held_version: Version | None  # version of the weights in memory; None: none
    held_digest: Sha256OrEmpty | None
    closing: bool  # the job drains and only commits what it trained on its kept samples; needs no permit


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a site does in one round."""

    round: Version
    base_version: Version
    base_digest: String
    fetch: String  # "none": already held; "update": apply `blob` to the held version; "weights": load `blob`
    blob: String  # SHA-256 of the file to fetch; "": none
    lease_start: Count  # samples [lease_start, lease_stop) of the packed stream
    lease_stop: Count
    train_s: Seconds  # commit after so many seconds at most
    tokens_before: Count  # global tokens at the base version
    tokens_per_step: Count  # tokens of all sites per step of this site
    codec: String  # "weights": exact float32 weights (sole contributor); else the codec of the pseudo-gradient
    members: Count
    steps: Count  # inner steps H, at most; steps * batch samples <= the lease
    keep: bool  # the job may train on after its commit, on the rest of its lease
    rate_factor: Factor  # multiplies the learning rates when several sites train; 1 for a sole site
    memory_factor: Factor  # multiplies the memory of Muon's momentum, likewise


@dataclass(frozen=True, slots=True)
class CheckoutReply:
    """Controller -> job. `kind`: train, wait (ask again after `retry_s`), leave (exit)."""

    kind: String
    reason: String
    retry_s: Annotated[float, Real(0.0, 3600.0)]
    assignment: Assignment | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Job -> controller, POST /v1/rounds/progress, about once a second."""

    site: Name
    fence: Count
    job: Name
    round: Version
    step: Count  # inner steps done in this round
    tokens: Count  # tokens done in this round
    loss: Loss | None  # of the latest step, mean over ranks
    tokens_per_s: Annotated[float, Real(0.0, 1e15)]


@dataclass(frozen=True, slots=True)
class ProgressReply:
    """Controller -> job. `end_round`: commit at the next step, because another site waits."""

    end_round: bool
    reason: String


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """Job -> controller, POST /v1/rounds/commit; a repeated request gets the first receipt."""

    site: Name
    fence: Count
    job: Name
    round: Version
    base_version: Version
    base_digest: Sha256
    steps: Count
    samples: Count  # consumed prefix of the lease
    tokens: Count  # samples * sequence_len
    blob: Sha256
    codec: Word
    digest: Sha256OrEmpty  # of the exact weights when codec is "weights", else empty
    loss_first: Loss | None
    loss_mean: Loss | None
    loss_last: Loss | None
    seconds: Seconds  # spent in inner steps
    keep: bool  # the job trains on: samples [lease_start + samples, lease_stop) stay leased to it


@dataclass(frozen=True, slots=True)
class Receipt:
    """Controller -> job: the contribution is durable."""

    receipt: String
    round: Integer
    site: String
    tokens: Integer
    repeated: bool


@dataclass(frozen=True, slots=True)
class BlobOffer:
    """Job -> controller, POST /v1/blobs: announces an upload before its bytes."""

    sha256: Sha256
    size: Annotated[int, Whole(1)]


@dataclass(frozen=True, slots=True)
class BlobStatus:
    """Controller -> job: which parts are still missing."""

    sha256: Sha256
    size: Count
    part_bytes: Annotated[int, Whole(1, 2**30)]
    missing: tuple[Integer, ...]
    complete: bool
