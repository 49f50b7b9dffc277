"""`curtail trace` and `curtail signal`: generate, import, plot and check MCI signals."""
