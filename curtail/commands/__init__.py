"""The `curtail` command line: one folder per command or group of commands.

A `command.py` (or `controller.py`, `agent.py`) declares names, options, defaults and
help texts, and validates input before anything starts. Help must be instant, so
these modules import nothing but typer at module level. Results go to stdout,
everything else to stderr. Exit codes: 0 success, 1 failure, 2 usage, 3 not found,
4 not allowed, 5 unreachable, 7 conflict, 130 interrupted.

To add a command: put it into the module of its group. A command without a group goes
next to the commands that work on the same thing (a run's folder, a checkpoint, a
trace), or into a new module if there are none. A new group is two lines in `program`,
a new module two lines below. Checks shared by several modules are in `options`.
Modules of commands do not import each other, and do not use
`from __future__ import annotations`: typer evaluates every annotation, and
evaluating strings would slow down every start.
"""

from __future__ import annotations

from curtail.commands.options import check_name, default_state, read_token
from curtail.commands.program import app, invoke

# Importing a module registers its commands, so this is the order of `curtail --help`.
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
from curtail.commands.site import command as site_command
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
    site_command,
)
"""The modules that hold commands."""

__all__ = ["COMMANDS", "app", "check_name", "default_state", "invoke", "read_token"]
