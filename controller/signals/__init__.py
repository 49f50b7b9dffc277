"""Where readings of marginal carbon intensity come from. Importing it does nothing."""
