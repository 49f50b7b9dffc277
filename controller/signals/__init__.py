"""Live grid signals and replayed traces as sources of readings."""
