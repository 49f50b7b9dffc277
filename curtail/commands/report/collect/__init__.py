"""Figures of a report, from the store of a run."""
