"""The sections about what is trained, and how: [run], [model], [data], [training], [rounds]."""

from __future__ import annotations

from dataclasses import dataclass, field

from curtail.config.quantities import number, quantity


@dataclass(frozen=True, slots=True)
class RunSection:
    """[run]"""

    name: str
    seed: int = 1


@dataclass(frozen=True, slots=True)
class ModelSection:
    """[model]"""

    preset: str


@dataclass(frozen=True, slots=True)
class DataSection:
    """[data]"""

    path: str  # folder made by `curtail data prepare`; relative to the run file


@dataclass(frozen=True, slots=True)
class TrainingSection:
    """[training]"""

    token_budget: int = number(low=1)
    batch_samples: int = number(low=1)  # samples per optimizer step of a site
    # per rank and pass; 0, in the file "auto": on a GPU what fits, on a CPU the whole slice
    device_batch_samples: int = field(default=0, metadata={"low": 0, "high": None, "words": {"auto": 0}})
    recipe: str = "reference"  # hyperparameters by name; `nanochat.recipe` knows which there are
    set: tuple[str, ...] = ()  # KEY=VALUE, on top of the recipe
    warmdown_fraction: float | None = number(None, low=0.0, high=1.0)  # default: the recipe's


CODECS = ("fp32", "bf16", "int8", "int4")
"""Forms in which a delta can travel; `nanochat.delta` makes and reads them."""


LEASE_ROUNDS = 50
"""For how many rounds a lease of several sites lasts that train on while their contributions travel."""


@dataclass(frozen=True, slots=True)
class OuterStep:
    """One row of [rounds.outer]: the outer step when `sites` or more contribute, up to the next row."""

    sites: int
    lr: float = number(1.0, low=0.0)
    momentum: float = number(0.0, low=0.0, high=0.999)  # Nesterov


@dataclass(frozen=True, slots=True)
class RoundsSection:
    """[rounds]"""

    inner_steps: int = number(100, low=1)  # most steps of a site in one round, besides those made ahead of it
    length: float = quantity("duration", 300.0, low=0.1)  # wall time after which a site commits
    grace: float = quantity("duration", 30.0)  # most wall time that a round waits for commits after that
    quorum: int = number(1, low=1)  # contributions without which a round waits longer than the grace
    codec: str = field(default="int8", metadata={"choices": CODECS})  # of deltas
    broadcast: str = field(default="", metadata={"choices": CODECS})  # of updates; default: as codec
    overlap: bool = False  # FEDERATED sites train on while their contribution travels and is merged
    ahead_steps: int | None = number(None, low=0)  # steps a lease exceeds a round by; default: see `ahead`
    rewarm_steps: int = number(20, low=0)  # over which a site without inner state raises its learning rate
    outage: float = quantity("duration", 600.0)  # how long a contribution waits for an unreachable controller
    stale_weight: float = number(0.0, low=0.0, high=1.0)  # per version of staleness; 0: late ones are refused
    outer: tuple[OuterStep, ...] = (OuterStep(2, 1.0, 0.0),)  # ascending by sites; chosen in docs/federated.md
    rate_power: float | None = number(None, low=0.0, high=1.0)  # inner rates of K sites at once: * K ** this
    memory_power: float | None = number(None, low=0.0, high=1.0)  # steps that Muon remembers: * K ** this
    keep_versions: int = number(3, low=2)

    @property
    def ahead(self) -> int:
        """Steps by which a lease exceeds the round where the job may train on.

        A sole site's lease grows by the samples after it. With several sites the next one holds those, so
        that a lease lasts for what it was made for: `LEASE_ROUNDS`, of which one is not overlapped.
        """
        if self.ahead_steps is not None:
            return self.ahead_steps
        return self.inner_steps * (LEASE_ROUNDS - 1 if self.overlap else 1)

    @property
    def powers(self) -> tuple[float, float]:
        """Powers of the number of sites on inner rates and on Muon's memory.

        By default what suits the plain mean; an outer momentum already makes several sites' steps
        longer, and both together do harm (benchmarks/parity.md), so with one they are 0.
        """
        mean = all(row.momentum == 0.0 for row in self.outer)
        both = 0.5 if mean else 0.0
        return (
            both if self.rate_power is None else self.rate_power,
            both if self.memory_power is None else self.memory_power,
        )

    @property
    def broadcast_codec(self) -> str:
        """Form in which updates travel."""
        return self.broadcast or self.codec
