"""Aggregates contributions to a new version of the weights, in a separate process."""
