"""The commands, their flags and their help; what they do is elsewhere.

Decides names, defaults and which input is refused before anything starts. Help
must be instant, so nothing but typer is imported outside the functions. Results
go to stdout, everything else to stderr. Exit codes: 0 fine, 1 failure, 2 usage,
3 not found, 4 not allowed, 5 unreachable, 7 conflict, 130 interrupted.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail import __version__
from curtail.errors import AuthError, NotFound, UsageError


def _group(text: str) -> typer.Typer:
    # rich help and completion would cost more time than most commands
    return typer.Typer(
        help=text,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group("Train language models across GPU sites, each only while its grid throws renewable power away.")
controller_app = _group("The one process that decides and keeps a run.")
agent_app = _group("The process on every GPU machine.")
checkpoint_app = _group("Checkpoints of nanochat to ours, and ours to others.")
tokenizer_app = _group("Make a tokenizer.")
data_app = _group("Turn text into training data.")
bench_app = _group("Measure this machine.")
trace_app = _group("MCI traces: invented, brought in, shown.")
signal_app = _group("Live grid signals.")
ledger_app = _group("The accounts of a run.")
app.add_typer(controller_app, name="controller")
app.add_typer(agent_app, name="agent")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(trace_app, name="trace")
app.add_typer(signal_app, name="signal")
app.add_typer(ledger_app, name="ledger")

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
LONGEST_TOKEN = 4096
"""Characters; a token file that is longer is another file, given by mistake."""


class Form(StrEnum):
    """Forms that a checkpoint can be exported to."""

    NANOCHAT = "nanochat"
    SAFETENSORS = "safetensors"


class Unit(StrEnum):
    """Units of an MCI trace."""

    GRAMS = "g/kWh"
    POUNDS = "lb/MWh"


class Packing(StrEnum):
    """How documents become samples."""

    STREAM = "stream"
    BEST_FIT = "bestfit"


class Loss(StrEnum):
    """Ways to compute the loss, to be compared."""

    FUSED = "fused"
    PLAIN = "plain"


class Dataset(StrEnum):
    """Published data sets that can be fetched."""

    FINEWEB_EDU = "fineweb-edu"
    CLIMBMIX = "climbmix"


def invoke(arguments: list[str]) -> int:
    """Run one command line; returns the exit code.

    Raises: CurtailError, also for flags that typer refuses. KeyboardInterrupt.
    """
    try:
        answer = app(args=arguments, prog_name="curtail", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # typer's usage errors share no public base class in all versions we allow
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
            return UsageError.exit_code
        message = error.format_message().strip().rstrip(".")
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "curtail"
        raise UsageError(message[:1].lower() + message[1:], f"see {command} --help") from None
    return answer if isinstance(answer, int) else 0


def default_state() -> Path:
    """Where this user's state lives: $XDG_STATE_HOME/curtail, or ~/.local/state/curtail."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "curtail"


def check_name(kind: str, name: str) -> str:
    """`name`, if a site or region can have it.

    Raises: UsageError.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a {kind}", "use 1 to 64 letters, digits, dots, dashes and underscores"
        )
    return name


def read_token(file: Path | None) -> str | None:
    """The join token from `file`, else from CURTAIL_TOKEN, else None. Never from a flag: others can read those.

    Raises: NotFound, AuthError, UsageError.
    """
    if file is None:
        return os.environ.get("CURTAIL_TOKEN", "").strip() or None
    try:
        text = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise NotFound(f"there is no token file {file}", "the controller writes it to HOME/join-token") from None
    except OSError as error:
        raise AuthError(
            f"cannot read the token file {file}: {error.strerror}", "check its owner and its mode"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is no token file", "the controller writes it to HOME/join-token") from None
    if not text or len(text) > LONGEST_TOKEN or len(text.split()) != 1:
        raise UsageError(f"{file} does not hold a token", "the controller writes it to HOME/join-token")
    return text


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curtail {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Nothing is done without a command."""


@controller_app.command("start")
def controller_start(
    run_file: Annotated[Path, typer.Argument(help="The run file, TOML; docs/run-file.md lists its keys.")],
    home: Annotated[Path, typer.Option(help="Folder of the run's state; made if missing, continued if not.")],
    trace: Annotated[
        Path | None,
        typer.Option(
            help="MCI trace, CSV with point_time and a column for each region; by default the run file's signal.",
            show_default=False,
        ),
    ] = None,
    unit: Annotated[
        Unit | None, typer.Option(help="Unit of the trace's numbers; with --trace.", show_default=False)
    ] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="Seconds of the trace per second.")] = 1.0,
    host: Annotated[str, typer.Option(help="Address to listen on; only loopback works without TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8765,
    announce: Annotated[bool, typer.Option(help="Announce the address in the local network (zeroconf).")] = True,
    forecast: Annotated[bool, typer.Option(help="Use the trace's future as the forecast.")] = False,
) -> int:
    """Start the controller of a run, or go on with it."""
    from controller.serve import StartOptions, start

    options = StartOptions(
        home=home, run_file=run_file, trace=trace, unit=unit.value if unit else None, speed=speed, host=host, port=port,
        announce=announce, forecast=forecast,
    )  # fmt: skip
    return start(options)


@agent_app.command("join")
def agent_join(
    site: Annotated[str, typer.Option(help="Name of this site.")],
    region: Annotated[str, typer.Option(help="Grid region of the site, as in the run file.")],
    url: Annotated[
        str | None,
        typer.Argument(help="The controller, http://HOST:PORT; found by zeroconf if not given.", show_default=False),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the agent's state; by default ~/.local/state/curtail/agent-SITE.", show_default=False
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the join token; else CURTAIL_TOKEN in the environment.", show_default=False),
    ] = None,
    ranks: Annotated[int, typer.Option(min=0, help="Processes of a job; 0: one for each GPU, or one.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each process; 0: the cores, split.")] = 0,
    device_batch_samples: Annotated[
        str, typer.Option(help="Samples that a process takes through the model at once; auto: as the run file says.")
    ] = "auto",
    machines: Annotated[
        int, typer.Option(min=1, max=64, help="How many machines the site has; the same number at each of them.")
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            help="Where the site's other machines reach this one; by default as it reaches the controller.",
            show_default=False,
        ),
    ] = None,
    rendezvous_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of this machine at which the site's machines meet.")
    ] = 29400,
    link_limit: Annotated[
        str | None,
        typer.Option(help="Most that a job's transfers take of the link, such as 100Mbit/s.", show_default=False),
    ] = None,
) -> int:
    """Join a run with this machine and train whenever its region permits."""
    check_name("site", site)
    check_name("region", region)
    from agent.join import JoinOptions, run
    from agent.link import parse_rate

    return run(
        JoinOptions(
            url=url, site=site, region=region, home=home or default_state() / f"agent-{site}",
            token=read_token(token_file), ranks=ranks, threads=threads,
            device_batch_samples=_samples_at_once(device_batch_samples),
            machines=machines, address=address, rendezvous_port=rendezvous_port,
            link_bytes_s=parse_rate(link_limit) if link_limit else 0.0,
        )
    )  # fmt: skip


@app.command()
def status(
    url: Annotated[
        str | None,
        typer.Argument(help="The controller, http://HOST:PORT; else CURTAIL_URL, else zeroconf.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the snapshot as JSON.")] = False,
    watch: Annotated[
        bool | None, typer.Option(help="Keep showing; the default on a terminal.", show_default=False)
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between snapshots.")] = 0.5,
) -> int:
    """Show what a run does: regime, regions, sites, loss, energy."""
    from curtail.watch import show

    address = url or os.environ.get("CURTAIL_URL")
    if not address:
        from curtail.discovery import find_controller

        address = find_controller().url
    return show(address, as_json=json, watch=watch, interval=interval)


@app.command("train")
def train(
    data: Annotated[Path, typer.Option(help="Folder of prepared data.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and metrics; made if missing.")],
    preset: Annotated[
        str | None, typer.Option(help="Name of the model; docs/run-file.md lists them.", show_default=False)
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
        str, typer.Option(help="Attention backend; auto: the first one that works. docs/training.md lists them.")
    ] = "auto",
    fp8: Annotated[bool, typer.Option("--fp8", help="Multiply in 8-bit floats; on Hopper and later.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Train a model on this machine alone, the plain data-parallel way.

    The samples and steps are those of a federated run with one site. Killed at any moment, the
    same command goes on from the newest checkpoint. Under torchrun it is one of its ranks.
    """
    from curtail.training import run_train
    from nanochat.trainplan import TrainOptions

    options = TrainOptions(
        data=str(data.absolute()), out=str(out.absolute()), preset=preset, depth=depth, tokens=tokens, steps=steps,
        batch_samples=batch_samples, device_batch_samples=_samples_at_once(device_batch_samples), threads=threads,
        seed=seed, recipe=recipe, settings=tuple(setting or ()), save_every=save_every, keep=keep,
        milestone_every=milestone_every, eval_every=eval_every, eval_tokens=eval_tokens, wandb=wandb, resume=resume,
        compile=compile, attention=attention, fp8=fp8,
    )  # fmt: skip
    return run_train(options, ranks, json)


@bench_app.command("train")
def bench_train(
    preset: Annotated[
        str | None, typer.Option(help="Name of the model; docs/run-file.md lists them.", show_default=False)
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
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Measure how fast a model trains here: tokens per second, MFU, memory.

    On one device; under torchrun on all of its ranks. The tokens are made up.
    """
    if (preset is None) == (depth is None):
        raise UsageError("the model is named by --preset or by --depth", "give one of them")
    from curtail.training import run_bench
    from nanochat.speed import Asked

    asked = Asked(
        steps=steps, batch_samples=batch_samples, device_batch_samples=_samples_at_once(device_batch_samples),
        threads=threads, compiled=compile, attention=attention, fp8=fp8, fused_loss=loss is Loss.FUSED,
    )  # fmt: skip
    return run_bench(
        preset=preset, depth=depth, vocab_size=vocab_size, sequence_len=sequence_len, asked=asked, as_json=json
    )


def _samples_at_once(text: str) -> int:
    """A number of samples, 0 for auto. Raises: UsageError."""
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--device-batch-samples cannot be {text!r}", "give a number of samples, or auto")
    return int(text)


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
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
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
        from curtail.evaluate import run_eval

        return run_eval(checkpoint, data=data, tokens=tokens, batch=batch, as_json=json)
    if tokens is not None:
        raise UsageError("--tokens does not go with --core", "limit the questions with --max-per-task")
    from curtail.evaluate import run_core

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
    from curtail.evaluate import run_sample

    return run_sample(
        checkpoint, text, data=data, max_tokens=max_tokens, temperature=temperature, top_k=top_k or None, seed=seed
    )


@app.command()
def demo(
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON; progress goes to stderr.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder for everything; by default a new one in ~/.local/state/curtail.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the model and of the trace.")] = 1,
) -> int:
    """Watch it work, in under five minutes.

    A controller and three sites run on this machine and train a small model on Python's own
    sources, under an invented grid signal. Neither network nor GPU is needed.
    """
    from curtail.demo import run_demo

    return run_demo(json_out=json, keep=keep, seed=seed)


@app.command()
def simulate(
    trace: Annotated[Path, typer.Option(help="MCI trace, CSV with point_time and a column for each region.")],
    unit: Annotated[Unit, typer.Option(help="Unit of the trace's numbers, and of a forecast file's.")],
    regions: Annotated[str, typer.Option(help="Columns of the trace, A,B,C; one site in each.")],
    work_site_seconds: Annotated[float, typer.Option(help="Training to be done, in seconds of one site.")],
    power_train_w: Annotated[float, typer.Option(help="W of a site while it trains.")],
    power_idle_w: Annotated[float, typer.Option(help="W of a site while it loads, exchanges, holds or drains.")],
    threshold: Annotated[float, typer.Option(help="Sites train strictly below it, g/kWh.")] = 100.0,
    load_s: Annotated[float, typer.Option(help="Seconds from a start to the first step.")] = 100.0,
    stop_s: Annotated[float, typer.Option(help="Seconds from the last step to released GPUs.")] = 15.0,
    sync_s: Annotated[float, typer.Option(help="Seconds of exchange after a federated round.")] = 30.0,
    round_s: Annotated[float, typer.Option(help="Seconds of training in a federated round.")] = 600.0,
    power_load_w: Annotated[
        float | None, typer.Option(help="W while a site loads; by default --power-idle-w.", show_default=False)
    ] = None,
    standing_idle_w: Annotated[
        float | None, typer.Option(help="W of a paused site; by default --power-idle-w.", show_default=False)
    ] = None,
    forecast: Annotated[
        str, typer.Option(help="perfect: the trace's own future; none; or a CSV file like it.")
    ] = "none",
    signal_delay_s: Annotated[float, typer.Option(help="Seconds by which readings are late.")] = 0.0,
    forecast_miss_s: Annotated[float, typer.Option(help="Seconds by which the forecast sees windows end late.")] = 0.0,
    reading_miss_s: Annotated[float, typer.Option(help="Seconds by which readings see windows end late.")] = 0.0,
    deadline_h: Annotated[
        float | None,
        typer.Option(help="Hours in which the work is to be done, as cleanly as that allows.", show_default=False),
    ] = None,
    budget_kg: Annotated[
        float | None, typer.Option(help="kgCO2 to keep to, as fast as that allows.", show_default=False)
    ] = None,
    safety: Annotated[
        float | None,
        typer.Option(
            help="Factor on the work under a deadline; 1.01 with a perfect forecast, else 1.15.", show_default=False
        ),
    ] = None,
    enter_dwell_s: Annotated[
        float | None,
        typer.Option(help="Seconds below the threshold before a start; by default one period.", show_default=False),
    ] = None,
    leave_lead_s: Annotated[
        float, typer.Option(help="Seconds before a forecast end at which to leave; never below --stop-s.")
    ] = 0.0,
    min_window_s: Annotated[float, typer.Option(help="No forecast window shorter than this is begun.")] = 900.0,
    most_sites: Annotated[
        int | None,
        typer.Option(min=1, help="More sites than this are of no use; by default all are.", show_default=False),
    ] = None,
    pue: Annotated[float, typer.Option(help="Factor on all power, for the full boundary.")] = 1.0,
    embodied_g_per_site_h: Annotated[
        float, typer.Option(help="Share of a site's making, gCO2 for each hour, for the full boundary.")
    ] = 0.0,
    sweep: Annotated[
        str | None, typer.Option(help="Play it for each value, as threshold=50:150:10.", show_default=False)
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also list every change of a site, and why.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> int:
    """Plan a run: when would it finish, at what kg, with which sites.

    Plays a recorded trace against modelled sites, with the controller's own policy and ledger.
    """
    if json and csv:
        raise UsageError("--json and --csv do not go together", "give one of them")
    from curtail.simulate import Options, run_simulate

    options = Options(
        trace=trace, unit=unit.value, regions=tuple(name.strip() for name in regions.split(",") if name.strip()),
        work_site_seconds=work_site_seconds, power_train_w=power_train_w, power_idle_w=power_idle_w,
        threshold=threshold, load_s=load_s, stop_s=stop_s, sync_s=sync_s, round_s=round_s, power_load_w=power_load_w,
        standing_idle_w=standing_idle_w, forecast=forecast, signal_delay_s=signal_delay_s,
        forecast_miss_s=forecast_miss_s, reading_miss_s=reading_miss_s, deadline_h=deadline_h, budget_kg=budget_kg,
        safety=safety, enter_dwell_s=enter_dwell_s, leave_lead_s=leave_lead_s, min_window_s=min_window_s,
        most_sites=most_sites, pue=pue, embodied_g_per_site_h=embodied_g_per_site_h,
    )  # fmt: skip
    return run_simulate(options, sweep, "json" if json else "csv" if csv else "text", explain)


@ledger_app.command("check")
def ledger_check(
    home: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")] = Path("."),
    weights: Annotated[bool, typer.Option("--weights", help="Hash the files of all kept versions, too.")] = False,
) -> int:
    """Check that every sample and token of a run is accounted for, exactly once."""
    from controller.ledger import check

    return check(home, weights)


@app.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    json: Annotated[
        Path | None, typer.Option("--json", help="And the figures, as JSON, to this file.", show_default=False)
    ] = None,
) -> int:
    """Write a run as one HTML file: signal, training, loss, energy, carbon, rounds.

    It needs no network and no script.
    """
    from curtail.report import run_report

    return run_report(run, out, json)


@checkpoint_app.command("import")
def checkpoint_import(
    path: Annotated[Path, typer.Argument(help="nanochat's folder of a model, or its model_NNNNNN.pt.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; made if missing.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Its tokenizer.json, or the folder; copied beside it.", show_default=False)
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Which of several in the folder; by default the last.", show_default=False)
    ] = None,
    rope_base: Annotated[
        float | None, typer.Option(help="Base of the rotary positions; else inferred.", show_default=False)
    ] = None,
    qk_scale: Annotated[
        float | None, typer.Option(help="Factor on queries and keys; else inferred.", show_default=False)
    ] = None,
    softcap: Annotated[
        float | None, typer.Option(help="Bound of the logits; else inferred.", show_default=False)
    ] = None,
    short_window: Annotated[
        int | None, typer.Option(min=0, help="Tokens that S layers look back; else inferred.", show_default=False)
    ] = None,
) -> int:
    """Make a checkpoint of nanochat one of ours.

    Its files do not say which constants the model was trained with. They are inferred from the
    weights and printed; the last four options override them.
    """
    from curtail.convert import import_checkpoint
    from nanochat.foreign import Given

    return import_checkpoint(path, out, tokenizer, step, Given(rope_base, qk_scale, softcap, short_window))


@checkpoint_app.command("export")
def checkpoint_export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint, such as HOME/versions/v000012.")],
    form: Annotated[
        Form, typer.Option("--format", help="nanochat: .pt and meta JSON; safetensors: one file, facts included.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the files; made if missing.")],
) -> int:
    """Write a checkpoint in a form that others read."""
    from curtail.convert import export_checkpoint

    return export_checkpoint(checkpoint, form.value, out)


@tokenizer_app.command("train")
def tokenizer_train(
    shards: Annotated[Path, typer.Argument(help="Folder made by `curtail data import` or `data fetch`.")],
    vocab_size: Annotated[int, typer.Option(help="Number of token ids, special tokens included.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json; made if missing.")],
) -> int:
    """Learn a byte-pair encoding from imported text."""
    from curtail.corpus import train_tokenizer

    return train_tokenizer(shards, vocab_size, out)


@tokenizer_app.command("eval")
def tokenizer_eval(
    tokenizer: Annotated[Path, typer.Argument(help="tokenizer.json, or the folder that holds it.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A further text to measure, UTF-8; give it once for each.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Measure bytes per token, beside GPT-2's and cl100k's.

    The two are left out where tiktoken has no copy of their files; nothing is downloaded.
    """
    from curtail.corpus import evaluate_tokenizer

    return evaluate_tokenizer(tokenizer, text or [], json)


@data_app.command("import")
def data_import(
    paths: Annotated[list[Path], typer.Argument(help="Text files, folders, JSONL or parquet with a column `text`.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards; made if missing.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the data set in that folder.")] = False,
) -> int:
    """Bring text into shards."""
    from curtail.corpus import import_texts

    return import_texts(paths, out, overwrite)


@data_app.command("fetch")
def data_fetch(
    dataset: Annotated[Dataset, typer.Option(help="Which published data set.")],
    shards: Annotated[
        int, typer.Option("--shards", "-n", min=1, help="Number of training shards; the one for validation is added.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards; made if missing, completed if not.")],
    mirror: Annotated[
        str | None,
        typer.Option(help="Base address of a copy, instead of the published one.", show_default=False),
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(help="Take the shards from this folder instead of the network.", show_default=False),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Files that are fetched at once.")] = 4,
) -> int:
    """Fetch shards of a data set that nanochat trains on; what is there already is checked and kept."""
    from curtail.fetch import FetchOptions, run

    return run(
        FetchOptions(
            dataset=dataset.value, shards=shards, out=out, mirror=mirror, offline=offline, parallel=parallel
        )
    )  # fmt: skip


@data_app.command("prepare")
def data_prepare(
    shards: Annotated[Path, typer.Argument(help="Folder made by `curtail data import` or `data fetch`.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json, or the folder that holds it.")],
    sequence_len: Annotated[int, typer.Option(min=1, help="Tokens of one sample, as in the model's preset.")],
    out: Annotated[Path, typer.Option(help="Folder for the packed data; made if missing.")],
    packing: Annotated[
        Packing, typer.Option(help="stream: without gaps; bestfit: rows that begin with BOS, tails cropped.")
    ] = Packing.STREAM,
) -> int:
    """Pack shards into token files with a manifest."""
    from curtail.corpus import prepare

    return prepare(shards, tokenizer, sequence_len, out, packing.value)


@trace_app.command("synth")
def trace_synth(
    out: Annotated[Path, typer.Option(help="The CSV file to write, in g/kWh.")],
    region: Annotated[
        list[str], typer.Option(help="A region; give it once for each. With --days NAME:KIND:HOURS, as WEST:solar:-8.")
    ],
    segment: Annotated[
        list[str] | None,
        typer.Option(
            help="SECONDS:REGION+REGION, how long these are curtailed; SECONDS: for none. In order.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="Instead: so many days of a model of grids.", show_default=False)
    ] = None,
    period: Annotated[int, typer.Option(min=1, help="Seconds between readings.")] = 300,
    start: Annotated[str, typer.Option(help="First moment, ISO 8601.")] = "2026-03-01T10:00:00Z",
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal traces.")] = 1,
) -> int:
    """Write an invented trace: with a given course, or from a model with sun, wind and seasons."""
    for name in region:
        check_name("region", name.partition(":")[0] if days is not None else name)
    if (days is None) == (not segment):
        raise UsageError("an invented trace has a course or a model", "give --segment or --days, not both")
    if days is not None:
        from curtail.synthyear import write_year

        return write_year(out, region, days, period, start, seed)
    from curtail.synth import write_course

    return write_course(out, region, segment or [], period, start, seed)


@trace_app.command("import")
def trace_import(
    files: Annotated[
        list[Path],
        typer.Argument(help="CSV: point_time and columns; WattTime's point_time,value; or seconds and columns."),
    ],
    unit: Annotated[Unit, typer.Option(help="Unit of the files' numbers.")],
    out: Annotated[Path, typer.Option(help="The CSV file to write, in g/kWh.")],
    region: Annotated[
        list[str] | None,
        typer.Option(help="NAME=COLUMN, to choose and to rename; give it once for each.", show_default=False),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Moment of second 0, ISO 8601 with offset; for files in seconds.", show_default=False),
    ] = None,
) -> int:
    """Bring MCI traces of other programs into one file that is read here."""
    from curtail.traceimport import import_traces

    for text in region or []:
        check_name("region", text.partition("=")[0])
    return import_traces(files, unit.value, out, start, region or [])


@trace_app.command("show")
def trace_show(
    file: Annotated[Path, typer.Argument(help="MCI trace, CSV with point_time and a column for each region.")],
    unit: Annotated[Unit, typer.Option(help="Unit of its numbers.")],
    threshold: Annotated[float, typer.Option(help="Windows lie strictly below it, g/kWh.")] = 100.0,
    region: Annotated[
        list[str] | None, typer.Option(help="A column; give it once for each, else all.", show_default=False)
    ] = None,
    width: Annotated[int, typer.Option(min=0, max=10000, help="Characters of the plot; 0: what fits.")] = 0,
) -> int:
    """Plot a trace in the terminal, and list its windows."""
    from curtail.traceshow import show

    return show(file, unit.value, threshold, region or [], width)


@signal_app.command("check")
def signal_check(
    run_file: Annotated[Path, typer.Argument(help="The run file; its section [signal] names the source.")],
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Ask the signal of a run once: source, value, unit, age and verdict for every region.

    The exit code is 1 if any region is unknown.
    """
    from curtail.signalcheck import run_check

    return run_check(run_file, json)
