"""Decides which sites may train: rules, prices, costs and overrides, as pure functions."""
