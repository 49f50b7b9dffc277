"""How parts of the controller note a line in the event log."""

from __future__ import annotations

from collections.abc import Callable

from controller.store import Transaction

Event = Callable[[Transaction, str, str], None]
"""Notes one line in the event log: (transaction, kind, text)."""
