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

from curtail.cli.arguments import check_name, default_state, read_token
from curtail.cli.root import app, invoke

# Importing a module adds its commands, so this order is that of `curtail --help`.
# isort: off
from curtail.cli import status
from curtail.cli import train
from curtail.cli import demo
from curtail.cli import simulate
from curtail.cli import ledger
from curtail.cli import doctor
from curtail.cli import controller
from curtail.cli import agent
from curtail.cli import checkpoint
from curtail.cli import data
from curtail.cli import trace
from curtail.cli import access
from curtail.cli import override
# isort: on

COMMANDS = (status, train, demo, simulate, ledger, doctor, controller, agent, checkpoint, data, trace, access, override)
"""The modules that hold commands."""

__all__ = ["COMMANDS", "app", "check_name", "default_state", "invoke", "read_token"]
