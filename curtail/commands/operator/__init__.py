"""`curtail token`, `node` and `override`: operator commands for a run."""
