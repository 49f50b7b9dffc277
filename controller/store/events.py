"""The type of the function that adds a line to the event log."""

from __future__ import annotations

from collections.abc import Callable

from controller.store import Transaction

Event = Callable[[Transaction, str, str], None]
"""Adds a line to the event log: (transaction, kind, text)."""
