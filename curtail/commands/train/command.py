"""`train`, `bench train`, `eval` and `sample`: one machine and one model, no run."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, samples_at_once
from curtail.commands.program import app, bench_app
from curtail.errors import UsageError


class Loss(StrEnum):
    """Ways to compute the loss, to be compared."""

    FUSED = "fused"
    PLAIN = "plain"


@app.command("train")
def train(
    data: Annotated[Path, typer.Option(help="Folder of prepared data.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and metrics; made if missing.")],
    preset: Annotated[
        str | None, typer.Option(help="Name of the model; docs/reference/run-file.md lists them.", show_default=False)
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="Or its layers, 64 channels for each; vocabulary as the data.", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Token budget; by default as the recipe says.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Or steps.", show_default=False)] = None,
    batch_samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Samples of one step, all ranks together; by default 2^19 tokens.", show_default=False
        ),
    ] = None,
    device_batch_samples: Annotated[
        str, typer.Option(help="Samples that a rank takes through the model at once; auto: what fits.")
    ] = "auto",
    ranks: Annotated[int, typer.Option(min=0, help="Processes on this machine; 0: one for each GPU, or one.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each process; 0: the cores, split.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights.")] = 1,
    recipe: Annotated[str, typer.Option(help="Hyperparameters: reference, or best with later improvements.")] = (
        "reference"
    ),
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE changes a number of the recipe; repeatable.", show_default=False),
    ] = None,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints; 0: at the end only.")] = 1000,
    keep: Annotated[int, typer.Option(min=1, help="Newest checkpoints that are kept.")] = 2,
    milestone_every: Annotated[
        int, typer.Option(min=0, help="Checkpoints of steps divisible by it stay for good; 0: none.")
    ] = 0,
    eval_every: Annotated[int, typer.Option(min=0, help="Steps between scores in bits per byte; 0: never.")] = 0,
    eval_tokens: Annotated[int, typer.Option(min=1, help="Validation tokens of a score.")] = 524288,
    wandb: Annotated[bool, typer.Option("--wandb", help="Send the metrics to W&B too.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the newest whole checkpoint in --out.")] = True,
    compile: Annotated[
        bool | None, typer.Option(help="Compile the model; by default on CUDA only.", show_default=False)
    ] = None,
    attention: Annotated[
        str, typer.Option(help="Attention backend; auto: the first one that works. docs/guides/training.md lists them.")
    ] = "auto",
    fp8: Annotated[bool, typer.Option("--fp8", help="Multiply in 8-bit floats; on Hopper and later.")] = False,
    json: AsJson = False,
) -> int:
    """Train a model on this machine alone, the plain data-parallel way.

    The samples and steps are those of a federated run with one site. Killed at any moment, the
    same command goes on from the newest checkpoint. Under torchrun it is one of its ranks.
    """
    from curtail.commands.train.run import run_train
    from nanochat.train_options import TrainOptions

    options = TrainOptions(
        data=str(data.absolute()), out=str(out.absolute()), preset=preset, depth=depth, tokens=tokens, steps=steps,
        batch_samples=batch_samples, device_batch_samples=samples_at_once(device_batch_samples), threads=threads,
        seed=seed, recipe=recipe, settings=tuple(setting or ()), save_every=save_every, keep=keep,
        milestone_every=milestone_every, eval_every=eval_every, eval_tokens=eval_tokens, wandb=wandb, resume=resume,
        compile=compile, attention=attention, fp8=fp8,
    )  # fmt: skip
    return run_train(options, ranks, json)


@bench_app.command("train")
def bench_train(
    preset: Annotated[
        str | None, typer.Option(help="Name of the model; docs/reference/run-file.md lists them.", show_default=False)
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Or its layers, 64 channels for each.", show_default=False)
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=1, help="With --depth: token ids.")] = 65536,
    sequence_len: Annotated[int, typer.Option(min=1, help="With --depth: tokens of a sample.")] = 2048,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured, after two that warm up.")] = 10,
    batch_samples: Annotated[int, typer.Option(min=1, help="Samples of one step, all ranks together.")] = 16,
    device_batch_samples: Annotated[
        str, typer.Option(help="Samples that go through the model at once; auto: what fits.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's own choice.")] = 0,
    compile: Annotated[
        bool | None, typer.Option(help="Compile the model; by default on CUDA only.", show_default=False)
    ] = None,
    attention: Annotated[
        str, typer.Option(help="Attention backend; auto: the first one that works; all: each, as a table.")
    ] = "auto",
    fp8: Annotated[bool, typer.Option("--fp8", help="Multiply in 8-bit floats; on Hopper and later.")] = False,
    loss: Annotated[
        Loss, typer.Option(help="fused: block by block, as training does; plain: all logits at once.")
    ] = Loss.FUSED,
    json: AsJson = False,
) -> int:
    """Measure how fast a model trains here: tokens per second, MFU, memory.

    On one device; under torchrun on all of its ranks. The tokens are made up.
    """
    if (preset is None) == (depth is None):
        raise UsageError("the model is named by --preset or by --depth", "give one of them")
    from curtail.commands.train.run import run_bench
    from nanochat.throughput import Asked

    asked = Asked(
        steps=steps, batch_samples=batch_samples, device_batch_samples=samples_at_once(device_batch_samples),
        threads=threads, compiled=compile, attention=attention, fp8=fp8, fused_loss=loss is Loss.FUSED,
    )  # fmt: skip
    return run_bench(
        preset=preset, depth=depth, vocab_size=vocab_size, sequence_len=sequence_len, asked=asked, as_json=json
    )


@app.command("eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint, such as HOME/versions/v000012.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of prepared data; by default the run's own.", show_default=False)
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to score; by default all there are, at most 10,485,760.", show_default=False),
    ] = None,
    core: Annotated[
        Path | None,
        typer.Option(help="Compute the CORE metric instead, from this bundle (folder or zip).", show_default=False),
    ] = None,
    max_per_task: Annotated[
        int | None, typer.Option(min=1, help="With --core: questions of each set; by default all.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences that go through the model at once.")] = 16,
    json: AsJson = False,
    csv: Annotated[
        Path | None, typer.Option(help="With --core: also write the scores to this file.", show_default=False)
    ] = None,
) -> int:
    """Score a checkpoint in bits per byte, or by the CORE metric.

    The text is the validation part of the data that the checkpoint was trained on; CORE asks
    the questions of a bundle.
    """
    if core is None:
        if max_per_task is not None or csv is not None:
            raise UsageError("--max-per-task and --csv belong to the CORE metric", "give its bundle with --core")
        from curtail.commands.train.evaluate import run_eval

        return run_eval(checkpoint, data=data, tokens=tokens, batch=batch, as_json=json)
    if tokens is not None:
        raise UsageError("--tokens does not go with --core", "limit the questions with --max-per-task")
    from curtail.commands.train.evaluate import run_core

    return run_core(checkpoint, core, data=data, max_per_task=max_per_task, batch=batch, as_json=json, csv_file=csv)


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint, such as HOME/versions/v000012.")],
    text: Annotated[str, typer.Argument(help="The beginning of the text.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among the k likeliest tokens; 0 for all.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal texts.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the tokenizer; by default the run's own data.", show_default=False)
    ] = None,
) -> int:
    """Let a checkpoint continue a text."""
    from curtail.commands.train.evaluate import run_sample

    return run_sample(
        checkpoint, text, data=data, max_tokens=max_tokens, temperature=temperature, top_k=top_k or None, seed=seed
    )
