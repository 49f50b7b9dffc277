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
tokenizer_app = _group("Make a tokenizer.")
data_app = _group("Turn text into training data.")
trace_app = _group("Invented MCI traces.")
app.add_typer(controller_app, name="controller")
app.add_typer(agent_app, name="agent")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")
app.add_typer(trace_app, name="trace")

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
LONGEST_TOKEN = 4096
"""Characters; a token file that is longer is another file, given by mistake."""


class Unit(StrEnum):
    """Units of an MCI trace."""

    GRAMS = "g/kWh"
    POUNDS = "lb/MWh"


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
    trace: Annotated[Path, typer.Option(help="MCI trace, CSV with point_time and a column for each region.")],
    unit: Annotated[Unit, typer.Option(help="Unit of the trace's numbers.")],
    speed: Annotated[float, typer.Option(min=0.001, help="Seconds of the trace per second.")] = 1.0,
    host: Annotated[str, typer.Option(help="Address to listen on; only loopback works without TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8765,
    announce: Annotated[bool, typer.Option(help="Announce the address in the local network (zeroconf).")] = True,
    forecast: Annotated[bool, typer.Option(help="Use the trace's future as the forecast.")] = False,
) -> int:
    """Start the controller of a run, or go on with it."""
    from controller.serve import StartOptions, start

    options = StartOptions(
        home=home, run_file=run_file, trace=trace, unit=unit.value, speed=speed, host=host, port=port,
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
) -> int:
    """Join a run with this machine and train whenever its region permits."""
    check_name("site", site)
    check_name("region", region)
    from agent.join import JoinOptions, run

    return run(
        JoinOptions(
            url=url, site=site, region=region, home=home or default_state() / f"agent-{site}",
            token=read_token(token_file), ranks=ranks, threads=threads,
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
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Score a checkpoint in bits per byte.

    The text is the validation part of the data that the checkpoint was trained on.
    """
    from curtail.evaluate import run_eval

    return run_eval(checkpoint, data=data, tokens=tokens, as_json=json)


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


@tokenizer_app.command("train")
def tokenizer_train(
    shards: Annotated[Path, typer.Argument(help="Folder made by `curtail data import`.")],
    vocab_size: Annotated[int, typer.Option(help="Number of token ids, special tokens included.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json; made if missing.")],
) -> int:
    """Learn a byte-pair encoding from imported text."""
    from curtail.corpus import train_tokenizer

    return train_tokenizer(shards, vocab_size, out)


@data_app.command("import")
def data_import(
    paths: Annotated[list[Path], typer.Argument(help="Text files, folders, JSONL or parquet with a column `text`.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards; made if missing.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the data set in that folder.")] = False,
) -> int:
    """Bring text into shards."""
    from curtail.corpus import import_texts

    return import_texts(paths, out, overwrite)


@data_app.command("prepare")
def data_prepare(
    shards: Annotated[Path, typer.Argument(help="Folder made by `curtail data import`.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json, or the folder that holds it.")],
    sequence_len: Annotated[int, typer.Option(min=1, help="Tokens of one sample, as in the model's preset.")],
    out: Annotated[Path, typer.Option(help="Folder for the packed data; made if missing.")],
) -> int:
    """Pack shards into token files with a manifest."""
    from curtail.corpus import prepare

    return prepare(shards, tokenizer, sequence_len, out)


@trace_app.command("synth")
def trace_synth(
    out: Annotated[Path, typer.Option(help="The CSV file to write, in g/kWh.")],
    region: Annotated[list[str], typer.Option(help="A region; give it once for each.")],
    segment: Annotated[
        list[str],
        typer.Option(help="SECONDS:REGION+REGION, how long these are curtailed; SECONDS: for none. In order."),
    ],
    period: Annotated[int, typer.Option(min=1, help="Seconds between readings.")] = 300,
    start: Annotated[str, typer.Option(help="First moment, ISO 8601.")] = "2026-03-01T10:00:00Z",
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal traces.")] = 1,
) -> int:
    """Write an invented trace with a given course."""
    from curtail.synth import write_course

    for name in region:
        check_name("region", name)
    return write_course(out, region, segment, period, start, seed)
