"""Rounds: life cycle, sample leases, commits, and the publication of a version."""
