"""Whether a site may train: rules, prices, costs and overrides, as pure functions."""
