"""The typer application: command groups in the order of `--help`, and running one command line."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from curtail import __version__
from curtail.errors import UsageError


class Finite(typer.core.TyperCommand):
    """A command that rejects NaN and infinite numbers, because NaN passes typer's min and max checks."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Raises: UsageError: names the option."""
        context = super().make_context(*args, **extra)
        for parameter in self.params:
            value = context.params.get(parameter.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"invalid value for {parameter.opts[0]}: {value}", "give a finite number")
        return context


class Program(typer.Typer):
    """A group whose commands are `Finite`."""

    def command(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """Like typer's `command`."""
        return super().command(*args, **{"cls": Finite} | options)


def _group(text: str) -> typer.Typer:
    # rich help and completion would take longer than most commands
    return Program(
        help=text,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group("Train language models across GPU sites, each only while its grid curtails renewable power.")
controller_app = _group("Run the controller, the central process of a run.")
controller_service_app = _group("Run a controller as a systemd service.")
agent_app = _group("Run an agent, the process on every GPU machine.")
agent_service_app = _group("Run an agent as a systemd service.")
checkpoint_app = _group("Import checkpoints from nanochat; export checkpoints to other formats.")
tokenizer_app = _group("Train and evaluate tokenizers.")
data_app = _group("Turn text into training data.")
bench_app = _group("Measure the speed of this machine.")
trace_app = _group("Generate, import and plot traces of marginal carbon intensity (MCI).")
signal_app = _group("Check the live grid signal of a run.")
ledger_app = _group("Check, export and total the ledgers of a run.")
token_app = _group("Manage the tokens for agents, viewers and operators.")
node_app = _group("Manage the machines that have joined.")
site_app = _group("Manage the machines that a provisioner adds to and removes from a site.")
app.add_typer(controller_app, name="controller")
app.add_typer(agent_app, name="agent")
controller_app.add_typer(controller_service_app, name="service")
agent_app.add_typer(agent_service_app, name="service")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(trace_app, name="trace")
app.add_typer(signal_app, name="signal")
app.add_typer(ledger_app, name="ledger")
app.add_typer(token_app, name="token")
app.add_typer(node_app, name="node")
app.add_typer(site_app, name="site")


def check_words(path: tuple[str, ...], words: list[str]) -> tuple[str, ...]:
    """`path` and `words` as one tuple, if the command accepts `words`. Raises: as typer does."""
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    command.make_context(" ".join(("curtail", *path)), list(words)).close()
    return (*path, *words)


def invoke(arguments: list[str]) -> int:
    """Run one command line; returns the exit code.

    Raises: CurtailError, also for options that typer rejects. KeyboardInterrupt.
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
        message = error.format_message().strip().rstrip(".").replace("Value error, ", "")
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "curtail"
        raise UsageError(message[:1].lower() + message[1:], f"see {command} --help") from None
    return answer if isinstance(answer, int) else 0


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
    """The options of `curtail` itself."""
