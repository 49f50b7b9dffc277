"""Adds and removes the machines of a site as its windows open and close: drivers, life cycle, caps."""
