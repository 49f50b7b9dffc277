"""The commands, their flags and their help; what they do is elsewhere.

Decides names, defaults and which input is refused before anything starts. Help
must be instant, so nothing but typer is imported outside the functions. Results
go to stdout, everything else to stderr. Exit codes: 0 fine, 1 failure, 2 usage,
3 not found, 4 not allowed, 5 unreachable, 7 conflict, 130 interrupted.

Where a new command goes: into the module of its group. One without a group goes
beside the commands that work on the same thing (a run's folder, a checkpoint, a
trace), into a module of its own only if there is none. A new group is one line
in `root`, a new module two lines below. A value that two modules check goes
into `arguments`. Modules of commands do not import each other, and do without
`from __future__ import annotations`: typer reads every annotation, and compiling
them all from text would make each start slower.
"""

from __future__ import annotations

from curtail.commands.options import check_name, default_state, read_token
from curtail.commands.program import app, invoke

# Importing a module adds its commands, so this order is that of `curtail --help`.
# isort: off
from curtail.commands.status import command as status_command
from curtail.commands.train import command as train_command
from curtail.commands.demo import command as demo_command
from curtail.commands.simulate import command as simulate_command
from curtail.commands.ledger import command as ledger_command
from curtail.commands.report import command as report_command
from curtail.commands.doctor import command as doctor_command
from curtail.commands import controller
from curtail.commands import agent
from curtail.commands.checkpoint import command as checkpoint_command
from curtail.commands.data import command as data_command
from curtail.commands.trace import command as trace_command
from curtail.commands.operator import command as operator_command
# isort: on

COMMANDS = (
    status_command,
    train_command,
    demo_command,
    simulate_command,
    ledger_command,
    report_command,
    doctor_command,
    controller,
    agent,
    checkpoint_command,
    data_command,
    trace_command,
    operator_command,
)
"""The modules that hold commands."""

__all__ = ["COMMANDS", "app", "check_name", "default_state", "invoke", "read_token"]
