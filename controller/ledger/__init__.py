"""Writes the energy ledger, and settles it with later values of the source."""
