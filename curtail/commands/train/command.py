"""Options of `curtail train`, `bench train`, `eval` and `sample`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, samples_at_once
from curtail.commands.program import app, bench_app
from curtail.errors import UsageError


class Loss(StrEnum):
    """Implementations of the loss, for comparison."""

    FUSED = "fused"
    PLAIN = "plain"


Preset = Annotated[
    str | None, typer.Option(help="Model preset; docs/reference/run-file.md lists them.", show_default=False)
]
Depth = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Instead of --preset: number of layers, with 64 channels per layer and the vocabulary of the data.",
        show_default=False,
    ),
]
Tokens = Annotated[int | None, typer.Option(min=1, help="Token budget; default: from the recipe.", show_default=False)]
BatchSamples = Annotated[
    int | None,
    typer.Option(min=1, help="Samples per step over all ranks; default: 2^19 tokens.", show_default=False),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE overrides a number of the recipe; repeatable.", show_default=False),
]
Compile = Annotated[bool | None, typer.Option(help="Compile the model; default: on CUDA only.", show_default=False)]
Fp8 = Annotated[bool, typer.Option("--fp8", help="Use 8-bit floats for matrix products; Hopper GPUs and later.")]


@app.command("train")
def train(
    data: Annotated[Path, typer.Option(help="Folder of prepared data.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and metrics; created if missing.")],
    preset: Preset = None,
    depth: Depth = None,
    tokens: Tokens = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Instead of --tokens: number of steps.", show_default=False)
    ] = None,
    batch_samples: BatchSamples = None,
    device_batch_samples: Annotated[
        str, typer.Option(help="Micro-batch of one rank, in samples; auto: the largest that fits.")
    ] = "auto",
    ranks: Annotated[
        int, typer.Option(min=0, help="Processes on this machine; 0: one per GPU, or one without GPUs.")
    ] = 0,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads per process; 0: divide the cores among the processes.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights.")] = 1,
    recipe: Annotated[str, typer.Option(help="Hyperparameters: reference, or best (with later improvements).")] = (
        "reference"
    ),
    setting: Setting = None,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints; 0: only at the end.")] = 1000,
    keep: Annotated[int, typer.Option(min=1, help="Number of newest checkpoints to keep.")] = 2,
    milestone_every: Annotated[
        int, typer.Option(min=0, help="Also keep checkpoints whose step is a multiple of this; 0: none.")
    ] = 0,
    eval_every: Annotated[int, typer.Option(min=0, help="Steps between evaluations in bits per byte; 0: never.")] = 0,
    eval_tokens: Annotated[int, typer.Option(min=1, help="Validation tokens per evaluation.")] = 524288,
    wandb: Annotated[bool, typer.Option("--wandb", help="Also send the metrics to W&B.")] = False,
    resume: Annotated[bool, typer.Option(help="Resume from the newest complete checkpoint in --out.")] = True,
    compile: Compile = None,
    attention: Annotated[
        str, typer.Option(help="Attention backend; auto: the first one that works. docs/guides/training.md lists them.")
    ] = "auto",
    fp8: Fp8 = False,
    json: AsJson = False,
) -> int:
    """Train a model on this machine alone with plain data parallelism.

    Samples and steps are the same as in a federated run with one site. If the process is killed,
    the same command resumes from the newest checkpoint. Under torchrun it runs as one rank.
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
    preset: Preset = None,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1, help="Instead of --preset: number of layers, with 64 channels per layer.", show_default=False
        ),
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=1, help="With --depth: number of token ids.")] = 65536,
    sequence_len: Annotated[int, typer.Option(min=1, help="With --depth: tokens per sample.")] = 2048,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure, after two warm-up steps.")] = 10,
    batch_samples: Annotated[int, typer.Option(min=1, help="Samples per step over all ranks.")] = 16,
    device_batch_samples: Annotated[
        str, typer.Option(help="Micro-batch of one rank, in samples; auto: the largest that fits.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's default.")] = 0,
    compile: Compile = None,
    attention: Annotated[
        str, typer.Option(help="Attention backend; auto: the first one that works; all: a table of all of them.")
    ] = "auto",
    fp8: Fp8 = False,
    loss: Annotated[
        Loss, typer.Option(help="fused: block by block, as in training; plain: all logits at once.")
    ] = Loss.FUSED,
    json: AsJson = False,
) -> int:
    """Measure training speed on this machine: tokens per second, MFU, memory.

    Uses one device, or all ranks under torchrun. The tokens are synthetic.
    """
    if (preset is None) == (depth is None):
        raise UsageError("the model must be given by --preset or by --depth", "give one of them")
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
        Path | None, typer.Option(help="Folder of prepared data; default: the run's data.", show_default=False)
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens to score; default: all validation tokens, at most 10,485,760.", show_default=False
        ),
    ] = None,
    core: Annotated[
        Path | None,
        typer.Option(help="Compute the CORE metric instead, from this bundle (folder or zip).", show_default=False),
    ] = None,
    max_per_task: Annotated[
        int | None,
        typer.Option(min=1, help="With --core: maximum questions per task; default: all.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences per batch.")] = 16,
    json: AsJson = False,
    csv: Annotated[
        Path | None, typer.Option(help="With --core: also write the scores to this file.", show_default=False)
    ] = None,
) -> int:
    """Score a checkpoint in bits per byte or by the CORE metric.

    Bits per byte are measured on the validation split of the checkpoint's training data. The CORE
    metric uses the questions of a bundle.
    """
    if core is None:
        if max_per_task is not None or csv is not None:
            raise UsageError("--max-per-task and --csv need the CORE metric", "give its bundle with --core")
        from curtail.commands.train.evaluate import run_eval

        return run_eval(checkpoint, data=data, tokens=tokens, batch=batch, as_json=json)
    if tokens is not None:
        raise UsageError("--tokens and --core cannot be combined", "limit the questions with --max-per-task")
    from curtail.commands.train.evaluate import run_core

    return run_core(checkpoint, core, data=data, max_per_task=max_per_task, batch=batch, as_json=json, csv_file=csv)


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint, such as HOME/versions/v000012.")],
    text: Annotated[str, typer.Argument(help="The prompt.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sampling temperature; 0: always the most likely token.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k most likely tokens; 0: from all.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the tokenizer; default: the run's data.", show_default=False)
    ] = None,
) -> int:
    """Generate text with a checkpoint."""
    from curtail.commands.train.evaluate import run_sample

    return run_sample(
        checkpoint, text, data=data, max_tokens=max_tokens, temperature=temperature, top_k=top_k or None, seed=seed
    )
