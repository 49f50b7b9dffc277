"""Rounds: their life cycle, sample leases, commits, publication of a version."""
