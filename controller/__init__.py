"""The one process that decides: energy, state and HTTP. Importing it does nothing."""
