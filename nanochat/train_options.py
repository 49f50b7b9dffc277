"""Options and plan of a plain training run, checked before anything starts; no torch.

Derives model, budget, batch and schedule from options and data, and refuses what
cannot be trained. It needs no torch, so that an error is reported at once, before any
process starts. Units: tokens, samples, steps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from curtail.errors import ConfigError, DataError, Refused, UsageError
from nanochat.checkpoint import CheckpointMeta
from nanochat.manifest import PARTS, Manifest
from nanochat.presets import GPTConfig, config_for, preset_for
from nanochat.recipe import Recipe, batch_tokens_for, horizon, recipe_of
from nanochat.schedule import Schedule
from nanochat.tokenizer import FILE_NAME, Tokenizer
from nanochat.train_checkpoints import TrainingProgress, check_same_run, saved_steps

FAILURE_FILE = ".failure.json"
"""File in OUT with the error of a rank, for the process that started torchrun."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options of `curtail train`; None and 0 mean the default."""

    data: str
    out: str
    preset: str | None = None
    depth: int | None = None
    tokens: int | None = None
    steps: int | None = None
    batch_samples: int | None = None
    device_batch_samples: int = 0  # 0: find the largest that fits
    threads: int = 0  # 0: torch's default
    seed: int = 1
    recipe: str = "reference"
    settings: tuple[str, ...] = ()  # key=value, changes of the recipe
    save_every: int = 1000  # steps; 0: only at the end
    keep: int = 2
    milestone_every: int = 0
    eval_every: int = 0
    eval_tokens: int = 2**19
    wandb: bool = False
    resume: bool = True
    compile: bool | None = None  # None: on CUDA only
    attention: str = "auto"
    fp8: bool = False
    device: str = "auto"

    def to_json(self) -> str:
        """One line, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainOptions:
        """The inverse of `to_json`. Raises: ValueError, TypeError: `to_json` did not write it."""
        values = json.loads(text)
        return cls(**{**values, "settings": tuple(values["settings"])})


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """A checked training run."""

    config: GPTConfig
    manifest: Manifest
    recipe: Recipe
    schedule: Schedule
    batch_samples: int
    steps: int
    meta: CheckpointMeta  # of its checkpoints, without weights, tokens and time
    progress: TrainingProgress  # likewise

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_samples * self.manifest.sequence_len


def make_plan(options: TrainOptions, ranks: int) -> TrainPlan:
    """The run that `options` describe, on `ranks` ranks.

    Raises:
        UsageError, ConfigError: the options contradict each other, the ranks or the recipe.
        NotFound, DataError: there are no data, or they are for another model, or too little.
    """
    manifest = Manifest.load(Path(options.data))
    config = model_of(options, manifest)
    if options.tokens is not None and options.steps is not None:
        raise UsageError("--tokens and --steps both say how long to train", "give one of them")
    for name in ("tokens", "steps", "batch_samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}", "give at least 1")
    recipe = recipe_of(options.recipe, options.settings)
    length = manifest.sequence_len
    wanted = options.tokens if options.tokens is not None else horizon(config, options.recipe)
    batch = options.batch_samples
    if batch is None:
        if options.steps is not None:
            wanted = options.steps * 2**19
        batch = _whole(max(1, batch_tokens_for(config, options.recipe, wanted) // length), ranks)
    if batch % ranks:
        raise ConfigError(
            f"a batch of {batch} samples does not split over {ranks} ranks",
            f"use a batch of {_whole(batch, ranks)} samples, or another number of ranks",
        )
    _check_files(options, manifest)
    samples = manifest.samples("train")
    if samples < batch:
        raise DataError(
            f"the data in {options.data} have {samples} training samples, but one step needs {batch}",
            "import more text, or give a smaller --batch-samples",
        )
    steps = options.steps if options.steps is not None else max(1, wanted // (batch * length))
    budget = steps * batch * length
    meta = CheckpointMeta(
        preset=options.preset, model_config=config, tokens=0, version=0, weights_digest="",
        tokenizer_digest=manifest.tokenizer, manifest_digest=manifest.digest,
        created="",
    )  # fmt: skip
    progress = TrainingProgress(
        step=0, tokens=0, token_budget=budget, batch_samples=batch, seed=options.seed,
        recipe=recipe.to_json(), ranks=ranks,
        device_batch=options.device_batch_samples, seconds=0.0, loss=None, optimizer_sha256="",
    )  # fmt: skip
    schedule = recipe.schedule(config, budget, batch * length)
    return TrainPlan(config, manifest, recipe, schedule, batch, steps, meta, progress)


def _check_files(options: TrainOptions, manifest: Manifest) -> None:
    """Check that all files that the run will read are there, so that it does not fail hours later.

    Raises: NotFound, DataError: no tokenizer, or another one; a token file is missing or has a wrong size.
    """
    data = Path(options.data)
    tokenizer = Tokenizer.load(data / FILE_NAME)
    if tokenizer.digest != manifest.tokenizer:
        raise DataError(
            f"the tokens in {data} were made with the tokenizer {manifest.tokenizer:.12}, but {FILE_NAME} there is"
            f" {tokenizer.digest:.12}",
            "put the right tokenizer there, or run `curtail data prepare` again",
        )
    manifest.check_files(data, PARTS if options.eval_every else ("train",))


def model_of(options: TrainOptions, manifest: Manifest) -> GPTConfig:
    """The model, adapted to the data's sample length.

    Raises:
        UsageError: both or none of preset and depth are given.
        ConfigError: no such preset, or the data have another vocabulary or longer samples.
    """
    if (options.preset is None) == (options.depth is None):
        raise UsageError("the model is named by --preset or by --depth", "give one of them")
    if options.depth is not None:
        return config_for("lambdas", options.depth, manifest.vocab_size, manifest.sequence_len)
    return preset_for(str(options.preset), manifest.vocab_size, manifest.sequence_len)


def check_out(options: TrainOptions, plan: TrainPlan) -> list[str]:
    """Check that the run may use its folder. Returns: messages for the user.

    Raises:
        UsageError: it is not a folder. Refused: there is a run already, and --resume is not given.
        CheckpointError: there is another run.
    """
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder", "give another one with --out")
    if not saved_steps(out):
        return []
    if not options.resume:
        raise Refused(
            f"{out} has the checkpoints of another run", "give another folder with --out, or continue with --resume"
        )
    return check_same_run(out, plan.meta, plan.progress)


def _whole(batch: int, ranks: int) -> int:
    return -(-batch // ranks) * ranks
