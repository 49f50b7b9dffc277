"""One run of a made-up fleet in one process, with the product's own inner steps, deltas, outer step and leases.

Decides what a run with several sites does, step by step, without network, disk or
clock: the sites train one after the other, and time is counted in inner steps
(all sites are equally fast). What it leaves out changes no weights: transfers,
heartbeats, permits, the store. Samples are drawn in a random order of its own
for each seed, as neighbouring samples of a large data set belong to different
documents. Units: tokens, nats per token, bytes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from agent.job.optimizer_state import still_useful
from controller.aggregation import outer_step as merging
from controller.rounds import lifecycle
from controller.store import sample_pool
from controller.store.sample_pool import Pool, Range
from nanochat import delta, weights
from nanochat.bpb import bits_per_byte
from nanochat.gpt import GPT
from nanochat.manifest import Manifest
from nanochat.optim import MuonAdamW
from nanochat.pack import TokenStream
from nanochat.presets import GPTConfig
from nanochat.recipe import recipe_of
from nanochat.schedule import Hyper, Timetable, joint, rewarm_factor
from nanochat.tokenizer import Tokenizer
from nanochat.train import MicroBatch, SampleStream, StepBatches, inner_steps

CPU = torch.device("cpu")
Stay = tuple[int, frozenset[int]]
"""How many inner steps something lasts, and the sites that may train meanwhile."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a run trains. The defaults are the point around which one thing at a time is changed."""

    sites: int = 2  # that may train all the time, unless there is a script
    script: tuple[tuple[int, str], ...] = ()  # (inner steps, names of the sites that may train), over and over
    batch_samples: int = 6  # of one inner step of one site
    inner_steps: int = 30  # H: of one site in a round
    last_inner_steps: int = 0  # H in the last fifth of the tokens; 0: as before
    inner_state: str = "kept"  # or "reset": a new inner optimizer in every round of several sites
    rewarm: int = 0  # inner steps over which the rate of a new inner optimizer rises, but at the start of the run
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    last_outer_lr: float = 0.0  # once the momentum is off; 0: as before
    codec: str = "int8"
    feedback: bool = False  # what the codec cannot express is added to the next delta, in both directions
    rate: float = 1.0  # factor on the inner rates
    lr_scaling: float = 0.0  # the inner rates are multiplied by (sites in the round) ** lr_scaling, too
    momentum_scaling: float = 0.0  # Muon remembers (sites in the round) ** momentum_scaling times the steps
    budget_share: float = 1.0  # of the tokens of the comparison
    split: bool = False  # the sites of a round share the batch: each takes batch / sites, and sites times as many steps
    ahead_steps: int = 0  # inner steps made before the version arrives that they belong to; sites that stay only
    late_every: int = 0  # every so many rounds the last site's contribution comes one version late; 0: never
    staleness_discount: float = 0.5  # what such a contribution counts


@dataclass(frozen=True, slots=True)
class Scale:
    """What all runs of a comparison share."""

    model: GPTConfig
    token_budget: int
    settings_of_recipe: tuple[str, ...] = ()
    validation_tokens: int = 65_536
    texts: str = "library"  # which texts, by name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with."""

    loss: float  # nats per token of the validation part
    bpb: float
    tokens: int
    lifecycle: int
    rounds_by_sites: dict[int, int]
    upload_bytes: int  # of one site in one round, the mean; 0 without rounds of several sites
    seconds: float


class Data:
    """Packed data; `shuffled` gives the training part in an order of its own for each seed."""

    def __init__(self, folder: Path) -> None:
        manifest = Manifest.load(folder)
        self.training = TokenStream(folder, manifest)
        self.validation = TokenStream(folder, manifest, "validation")
        self.token_bytes = Tokenizer.load(folder / "tokenizer.json").token_bytes()

    def shuffled(self, seed: int) -> Shuffled:
        return Shuffled(self.training, self.training.samples, seed)


class Shuffled:
    """A stream of which sample i is sample order[i modulo samples] of another."""

    def __init__(self, stream: SampleStream, samples: int, seed: int) -> None:
        self._stream, self._order = stream, np.random.default_rng(seed).permutation(samples)

    def batch(self, start: int, stop: int) -> MicroBatch:
        places = [int(self._order[index % len(self._order)]) for index in range(start, stop)]
        parts = [self._stream.batch(place, place + 1) for place in places]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@dataclass(slots=True)
class Rates:
    """A schedule with a factor, and with a rise for an optimizer that starts in the middle of a run."""

    schedule: Timetable
    optimizer: MuonAdamW
    factor: float
    rewarm: int

    def at(self, tokens: int | float) -> Hyper:
        hyper = self.schedule.at(tokens)
        rise = rewarm_factor(self.optimizer.step_count, self.rewarm)
        return dataclasses.replace(hyper, lr_scale=hyper.lr_scale * self.factor * rise)


class Site:
    """What one site keeps: model, inner optimizer, and what its codec left over."""

    def __init__(self, scale: Scale, setting: Setting, stream: SampleStream) -> None:
        self.scale, self.setting, self.stream = scale, setting, stream
        budget = round(scale.token_budget * setting.budget_share)
        self.recipe = recipe_of("reference", scale.settings_of_recipe)
        self.model = GPT(scale.model)
        self.batch_tokens = setting.batch_samples * scale.model.sequence_len
        self.schedule = self.recipe.schedule(scale.model, budget, self.batch_tokens)
        self.optimizer = self._new_optimizer()
        self.rewarm = 0  # the first optimizer of a run starts with the weights, at full rate
        self.tokens: int | None = None  # global tokens the optimizer has reached
        self.version = -1  # whose weights the model has
        self.lease: Range | None = None  # of the next round, if a part of it is made already
        self.ahead = 0  # steps of it that are made
        self.snapshot: weights.Weights = {}  # what was handed in before them
        self.late: Contribution | None = None  # what has not arrived yet
        self.residual: delta.Encoded | None = None

    def _new_optimizer(self) -> MuonAdamW:
        return MuonAdamW(self.model, self.scale.model, self.batch_tokens, self.recipe)

    def ready(self, tokens: int, several: bool) -> None:
        """Before a round: keep the inner optimizer, or begin a new one."""
        if self.tokens is None:
            stale = tokens > 0  # a site that comes later has none, a new one is there already
        else:
            stale = not still_useful(self.tokens, tokens, self.batch_tokens)
            if stale or (several and self.setting.inner_state == "reset"):
                self.optimizer = self._new_optimizer()
        if stale:
            self.rewarm = self.setting.rewarm

    def begin(self, base: weights.Weights, version: int) -> None:
        """Take up a version: as it is, or what it has over the snapshot added to the overlapped steps."""
        if self.ahead:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.add_(torch.from_numpy(base[name] - self.snapshot[name]))
        elif self.version != version:
            weights.load_into(self.model, base)

    def train_ahead(self, lease: Range, steps: int, tokens: int, sites: int) -> None:
        """The first steps of the next round, from what this one ended with."""
        self.lease, self.ahead = lease, min(steps, lease.size // self.setting.batch_samples)
        self.snapshot = weights.from_model(self.model)
        self.train(Range(lease.start, lease.start + self.ahead * self.setting.batch_samples), tokens, sites)

    def train(self, lease: Range, tokens: int, sites: int) -> int:
        """Steps over a lease, of batch_samples each (two sites that split it make two half ones); how many."""
        self.ready(tokens, sites > 1)
        cut = sites if self.setting.split else 1
        batch = self.setting.batch_samples // cut
        batches = StepBatches(
            self.stream,
            start=lease.start,
            stop=lease.stop,
            batch_samples=batch,
            device_batch=batch,
            prefetch=False,
        )
        per_step = self.batch_tokens * sites // cut
        factors = lifecycle.inner_factors(sites, self.setting.lr_scaling, self.setting.momentum_scaling)
        rates = Rates(joint(self.schedule, per_step, *factors), self.optimizer, self.setting.rate, self.rewarm)
        report = inner_steps(
            self.model,
            self.optimizer,
            rates,
            batches,
            tokens_before=tokens,
            tokens_per_step=per_step,
            until=lambda step: False,
            device=CPU,
        )
        self.tokens = tokens + report.tokens * sites
        self.version = -1
        return report.steps // cut

    def contribution(self, base: Mapping[str, np.ndarray]) -> delta.Encoded:
        """What it uploads."""
        change = delta.difference(base, weights.from_model(self.model))
        encoded, self.residual = _encode(change, self.setting, self.residual)
        return encoded


def _encode(
    change: weights.Weights, setting: Setting, residual: delta.Encoded | None
) -> tuple[delta.Encoded, delta.Encoded | None]:
    if not setting.feedback:
        return delta.encode(change, setting.codec), None
    return delta.encode_with_feedback(change, setting.codec, residual)


@dataclass(frozen=True, slots=True)
class Contribution:
    """A delta with the tokens it is made from, and how many versions it is late."""

    encoded: delta.Encoded
    tokens: int
    stale: int = 0


class Merge:
    """The controller's part: outer step, velocity, broadcast."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.velocity: weights.Weights = {}
        self.residual: delta.Encoded | None = None

    def _part(self, number: int, part: Contribution) -> merging.Part:
        weight = lifecycle.discount(self.setting.staleness_discount, part.stale)
        return merging.Part(str(number), "", "", part.tokens, "", weight, part.stale)

    def plan(self, parts: Sequence[merging.Part], momentum_off: bool) -> merging.OuterPlan:
        """The product's outer step, but for the rate in the last tenth, which is the setting's."""
        row = (2, self.setting.outer_lr, self.setting.outer_momentum)
        spec = merging.MergeSpec(0, 0, "", "", tuple(parts), "", (row,), False, 0, "")
        plan = merging.plan(spec, parts)
        if momentum_off:
            return merging.OuterPlan(self.setting.last_outer_lr or plan.lr, 0.0, False)
        return plan

    def step(self, base: weights.Weights, contributions: Sequence[Contribution], momentum_off: bool) -> weights.Weights:
        """The next version from what was handed in."""
        parts = [self._part(number, part) for number, part in enumerate(contributions)]
        plan = self.plan(parts, momentum_off)
        decoded = [dict(delta.decode(part.encoded)) for part in contributions]
        shares = [np.float32(share) for share in merging.shares(parts)]
        step: weights.Weights = {}
        velocity: weights.Weights = {}
        for name in sorted(base):
            mean = decoded[0][name] * shares[0]
            for arrays, share in zip(decoded[1:], shares[1:], strict=True):
                mean += arrays[name] * share
            step[name], moved = merging.outer_step(mean, self.velocity.get(name), plan.lr, plan.momentum)
            if moved is not None:
                velocity[name] = moved
        self.velocity = self.velocity if plan.keep_velocity else velocity
        broadcast, self.residual = _encode(step, self.setting, self.residual)
        return delta.apply_update(base, delta.decode(broadcast))


class Course:
    """Who may train at a time, in inner steps from the start."""

    def __init__(self, setting: Setting) -> None:
        everyone = frozenset(range(setting.sites))
        parts = setting.script or ((1, ""),)
        self._parts: list[Stay] = [
            (steps, frozenset(ord(name) - ord("A") for name in names) if setting.script else everyone)
            for steps, names in parts
        ]
        self.sites = 1 + max((site for _, names in self._parts for site in names), default=0)
        self.constant = not setting.script
        self._length = sum(steps for steps, _ in self._parts)

    def at(self, time: int) -> tuple[frozenset[int], int]:
        """The sites, and how long this lasts from `time` on."""
        place = time % self._length
        for steps, names in self._parts:
            if place < steps:
                return names, steps - place
            place -= steps
        raise AssertionError("the place is within the course")

    def leaves_after(self, site: int, time: int, most: int) -> int:
        """For how many steps from `time` on the site may train, at most `most`."""
        if self.constant:
            return most
        passed = 0
        while passed < most:
            names, left = self.at(time + passed)
            if site not in names:
                break
            passed += left
        return min(passed, most)

    def joined_after(self, time: int, most: int) -> int:
        """After how many steps from `time` on a further site may train, at most `most`."""
        here, passed = self.at(time)
        while not self.constant and passed < most:
            names, left = self.at(time + passed)
            if names - here:
                return passed
            passed += left
        return most


class Run:
    """A run from the first weights to the budget.

    Args: seed: of the first weights; the order of the samples is the stream's.
    """

    def __init__(self, setting: Setting, scale: Scale, stream: SampleStream, seed: int) -> None:
        self.setting, self.course, self.merge = setting, Course(setting), Merge(setting)
        self.sites = [Site(scale, setting, stream) for _ in range(self.course.sites)]
        self.sites[0].model.init_weights(seed)
        self.base, self.version = weights.from_model(self.sites[0].model), 0
        self.sites[0].version = 0
        self.length = scale.model.sequence_len
        budget = round(scale.token_budget * setting.budget_share)
        self.pool = Pool(0, sample_pool.budget_samples(budget, self.length, setting.batch_samples))
        self.budget, self.tokens = self.pool.limit * self.length, 0
        self.clock = 0  # in inner steps
        self.rounds_by_sites: dict[int, int] = {}
        self.uploads: list[int] = []  # bytes

    def finish(self) -> weights.Weights:
        """Round after round until every sample of the budget is trained; the last version."""
        while self.pool.size or any(site.lease for site in self.sites):
            ready, lasts = self.course.at(self.clock)
            if ready:
                self._round(sorted(ready))
            else:
                self.clock += lasts
        assert self.tokens == self.budget, "every sample of the budget is trained once"
        return self.base

    def _round(self, ready: Sequence[int]) -> None:
        batch_tokens, longest = self.setting.batch_samples * self.length, 0
        parts: list[Contribution] = []
        for number in ready:
            if (late := self.sites[number].late) is not None:
                parts.append(dataclasses.replace(late, stale=1))
                self.sites[number].late = None
            elif steps := self._train(number, len(ready)):
                longest = max(longest, steps)
                parts += self._hand_in(number, steps * batch_tokens, len(ready))
        counted = sum(part.tokens for part in parts)
        if len(ready) == 1:
            site = self.sites[ready[0]]
            self.base, site.version = weights.from_model(site.model), self.version + 1
            self.merge.velocity = {}  # a second site that joins finds none
        else:
            self.uploads += [sum(array.nbytes for array in part.encoded.values()) for part in parts]
            self._train_ahead(ready, counted)
            self.base = self.merge.step(self.base, parts, lifecycle.momentum_off(self.tokens, self.budget))
        self.version += 1
        self.tokens += counted
        self.clock += longest
        self.rounds_by_sites[len(ready)] = self.rounds_by_sites.get(len(ready), 0) + 1

    def _hand_in(self, number: int, tokens: int, sites: int) -> list[Contribution]:
        """What a site adds to this round; nothing if it comes late."""
        site, every = self.sites[number], self.setting.late_every
        if sites == 1:
            return [Contribution({}, tokens)]  # its weights are the next version as they are
        part = Contribution(site.contribution(self.base), tokens)
        if every and number == len(self.sites) - 1 and self.version % every == every - 1 and self.pool.size:
            site.late = part
            return []
        return [part]

    def _train_ahead(self, ready: Sequence[int], counted: int) -> None:
        """Every site's first steps of the next round, before this round's version exists."""
        if not self.setting.ahead_steps:
            return
        for number in ready:
            if (lease := self._lease(len(ready))) is not None:
                self.sites[number].train_ahead(lease, self.setting.ahead_steps, self.tokens + counted, len(ready))

    def _lease(self, sites: int) -> Range | None:
        late = self.setting.last_inner_steps and self.tokens >= 0.8 * self.budget
        most = self.setting.last_inner_steps if late else self.setting.inner_steps
        wanted = sample_pool.fair_share(self.pool.size, most, self.setting.batch_samples, sites)
        lease, self.pool = sample_pool.take(self.pool, wanted) if wanted else (None, self.pool)
        return lease

    def _train(self, number: int, sites: int) -> int:
        """One site's inner steps of a round: as many as its lease, its stay and the others allow."""
        site, batch = self.sites[number], self.setting.batch_samples
        lease = site.lease or self._lease(sites)
        if lease is None:
            return 0
        site.begin(self.base, self.version)
        steps, made = self.course.leaves_after(number, self.clock, lease.size // batch), site.ahead
        if sites == 1:
            steps = self.course.joined_after(self.clock, steps)
        part = Range(lease.start + made * batch, lease.start + steps * batch)
        self.pool = sample_pool.give_back(self.pool, Range(part.stop, lease.stop))
        site.lease, site.ahead = None, 0
        return made + site.train(part, self.tokens + made * sites * site.batch_tokens, sites)


def simulate(setting: Setting, scale: Scale, data: Data, seed: int) -> Outcome:
    """Train to the budget and score the last version on the validation part."""
    began = time.perf_counter()
    run = Run(setting, scale, data.shuffled(seed), seed)
    model = run.sites[0].model
    weights.load_into(model, run.finish())
    score = bits_per_byte(
        model, data.validation, data.token_bytes, tokens=scale.validation_tokens, device=CPU, device_batch=32
    )
    upload = round(sum(run.uploads) / len(run.uploads)) if run.uploads else 0
    seconds = time.perf_counter() - began
    return Outcome(score.loss, score.bpb, run.tokens, run.version, run.rounds_by_sites, upload, seconds)
