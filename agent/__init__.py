"""The agent, one process per GPU machine, and the torchrun job that it starts."""
