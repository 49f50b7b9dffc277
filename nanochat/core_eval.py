"""The CORE metric: scores a model on question sets by the likelihood of the answers.

Decides which answers are right and combines the accuracies: each is centred so that
guessing is 0, and CORE is their mean over the sets. The metric is DCLM's (arXiv
2406.11794), the procedure nanochat's (karpathy/nanochat, core_eval.py). Our batching
does not change a score. Accuracies are from 0 to 1, baselines in percent, losses in
nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from curtail.errors import CheckpointError, ConfigError
from curtail.system.clock import Clock, SystemClock
from nanochat.core_prompts import Candidate, TokenizedQuestion, ask_all
from nanochat.core_tasks import LANGUAGE_MODELING, CoreTask
from nanochat.gpt import GPT
from nanochat.tokenizer import Tokenizer

MOST_LOGITS = 2**27
"""Most logits in memory at once for language modelling, which needs all of them: 512 MiB in fp32."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One question set."""

    label: str
    kind: str  # multiple_choice, schema or language_modeling
    shots: int  # solved examples before each question
    questions: int
    cropped: int  # questions whose beginning was cut off to fit the model
    accuracy: float  # 0 to 1
    baseline: float  # accuracy of guessing, in percent
    centered: float  # 0: like guessing, 1: all right
    seconds: float


@dataclass(frozen=True, slots=True)
class CoreResult:
    """The scores of all question sets, and CORE."""

    core: float  # mean of `centered`
    tasks: tuple[TaskScore, ...]


def evaluate_core(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Sequence[CoreTask],
    *,
    batch: int = 16,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> CoreResult:
    """Score the model on all question sets.

    The model stays where it is and computes in its own dtype, fp32 on a CPU.

    Args:
        batch: sequences per forward pass.
        progress: called with the set's label, its finished sequences and their total.
    Raises:
        ConfigError: batch is below 1, there is no set, or the tokenizer does not match the model.
        DataError: an answer cannot be scored; names the question.
        CheckpointError: the model's losses are not finite.
    """
    if batch < 1 or not tasks:
        raise ConfigError(
            f"cannot score {len(tasks)} question sets with batches of {batch}", "give at least one of each"
        )
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the model has {model.config.vocab_size}",
            "use the tokenizer with which the model was trained",
        )
    clock = clock or SystemClock()
    scores = []
    for task in tasks:
        began = clock.monotonic()
        asked = ask_all(task, tokenizer, model.config.sequence_len)
        right = answers_right(model, task, asked, tokenizer.bos_id, batch, progress)
        accuracy = sum(right) / len(right)
        score = TaskScore(
            label=task.label,
            kind=task.kind,
            shots=task.shots,
            questions=len(asked),
            cropped=sum(one.cropped for one in asked),
            accuracy=accuracy,
            baseline=task.baseline,
            centered=centered(accuracy, task.baseline),
            seconds=clock.monotonic() - began,
        )
        scores.append(score)
    return CoreResult(sum(score.centered for score in scores) / len(scores), tuple(scores))


def centered(accuracy: float, baseline: float) -> float:
    """The accuracy scaled so that guessing is 0 and all right is 1: (a - b) / (1 - b).

    Args: accuracy: 0 to 1. baseline: percent, below 100.
    Source: arXiv 2406.11794; the order of operations is nanochat's.
    """
    return (accuracy - 0.01 * baseline) / (1.0 - 0.01 * baseline)


def answers_right(
    model: GPT,
    task: CoreTask,
    asked: Sequence[TokenizedQuestion],
    bos_id: int,
    batch: int,
    progress: Progress | None = None,
) -> list[bool]:
    """Whether the model answers each question right.

    The answer is the candidate with the lowest mean loss over its span. Language
    modelling is right if every token of the span is the most likely one.
    Raises: CheckpointError: the model's losses are not finite.
    """
    language = task.kind == LANGUAGE_MODELING
    flat = [candidate for one in asked for candidate in one.candidates]
    values = [math.nan] * len(flat)
    was_training = model.training
    model.eval()
    done = 0
    for places in batches(flat, batch, model.config.vocab_size if language else 0):
        rows = [flat[place] for place in places]
        found = exact_matches(model, rows, bos_id) if language else mean_losses(model, rows, bos_id)
        for place, value in zip(places, found, strict=True):
            values[place] = value
        done += len(places)
        if progress:
            progress(task.label, done, len(flat))
    model.train(was_training)
    if language:
        return [value == 1 for value in values]
    rest = iter(values)
    right = []
    for one, question in zip(asked, task.questions, strict=True):
        means = [next(rest) for _ in one.candidates]
        # If an answer is the beginning of all others, its span is empty and its mean NaN. As in the published
        # code, Python's `min` decides then: it is the answer if it is the first, and never otherwise.
        right.append(means.index(min(means)) == question.gold)
    return right


def batches(flat: Sequence[Candidate], batch: int, vocab: int = 0) -> Iterator[list[int]]:
    """Batches of candidate indices, of similar length, the longest first.

    Args: vocab: logits kept per token; 0: none.
    """
    order = sorted(range(len(flat)), key=lambda place: -len(flat[place].tokens))
    at = 0
    while at < len(order):
        logits = vocab * len(flat[order[at]].tokens)
        rows = min(batch, max(1, MOST_LOGITS // logits)) if logits else batch
        yield order[at : at + rows]
        at += rows


@torch.no_grad()
def mean_losses(model: GPT, rows: Sequence[Candidate], bos_id: int) -> list[float]:
    """The mean loss of each span, in nats per token; NaN for an empty one.

    Raises: CheckpointError: one is not finite.
    """
    inputs = _padded(rows, bos_id)
    targets = torch.full_like(inputs, -1)
    for number, row in enumerate(rows):
        targets[number, _before(row)] = inputs[number, 1:][_before(row)]
    device = next(model.parameters()).device
    losses = model(inputs.to(device), targets.to(device), "none").float().cpu()
    return [_finite(losses[number, _before(row)]).mean().item() for number, row in enumerate(rows)]


@torch.no_grad()
def exact_matches(model: GPT, rows: Sequence[Candidate], bos_id: int) -> list[float]:
    """1 for each span in which every token is the most likely one at its position, else 0.

    Raises: CheckpointError: a logit is not finite.
    """
    inputs = _padded(rows, bos_id)
    logits = model(inputs.to(next(model.parameters()).device))
    likeliest, height = logits.argmax(dim=-1).cpu(), logits.amax(dim=-1).cpu()
    found = []
    for number, row in enumerate(rows):
        _finite(height[number, _before(row)])
        found.append(float(torch.equal(likeliest[number, _before(row)], inputs[number, 1:][_before(row)])))
    return found


def _before(row: Candidate) -> slice:
    """The positions that predict the span's tokens: each token is predicted one position earlier.

    A span that begins with BOS is a whole text that equals the others, so it is not an
    answer. Nothing predicts BOS, and the published code scores nothing there.
    """
    return slice(row.start - 1, row.stop - 1) if row.start else slice(0, 0)


def _padded(rows: Sequence[Candidate], bos_id: int) -> torch.Tensor:
    """All rows as one (rows, longest) tensor, padded with BOS on the right, where no earlier token attends to it."""
    inputs = torch.full((len(rows), max(len(row.tokens) for row in rows)), bos_id, dtype=torch.int64)
    for number, row in enumerate(rows):
        inputs[number, : len(row.tokens)] = torch.from_numpy(row.tokens.astype("int64"))
    return inputs


def _finite(values: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise CheckpointError("the model's losses are not finite", "the weights are damaged; use another checkpoint")
    return values
