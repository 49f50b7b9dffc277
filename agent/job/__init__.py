"""The training job that torchrun runs on every rank (`python -m agent.job`); the only part of the agent with torch."""
