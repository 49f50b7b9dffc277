"""`curtail token`, `node` and `override`: what an operator does to a run."""
