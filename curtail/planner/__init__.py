"""A run on modelled sites, with the same policy and the same accounting; pure."""
