"""The durable state of a run: one SQLite file, and the only package with SQL.

One thread owns the connection; what others want done they hand over as a
function, which runs there inside one `BEGIN IMMEDIATE` transaction: either all
of it becomes true or nothing. Journal WAL, synchronous FULL: what was
acknowledged survives kill -9 and power loss. Weights and deltas are files,
never rows. Times named *_wall are Unix seconds, the others the controller's clock.
"""

from __future__ import annotations

from controller.store.database import Store, Transaction, reading, store_error
from controller.store.schema import MIGRATIONS, migrate

__all__ = ["MIGRATIONS", "Store", "Transaction", "migrate", "reading", "store_error"]
