"""The durable state of a run in one SQLite file; the only package with SQL.

One thread owns the connection. Other threads pass it a function, which runs there
inside one `BEGIN IMMEDIATE` transaction, so that all of its changes are committed
or none. Journal mode WAL and synchronous FULL: what was acknowledged survives
kill -9 and power loss. Weights and updates are files, never rows. Times named
*_wall are Unix seconds; the others are seconds of the controller's clock.
"""

from __future__ import annotations

from controller.store.database import Store, Transaction, reading, store_error
from controller.store.schema import MIGRATIONS, migrate

__all__ = ["MIGRATIONS", "Store", "Transaction", "migrate", "reading", "store_error"]
