"""From contributions to a new version of the weights, in a process of its own."""
