"""`curtail trace` and `curtail signal`: make, import, show and check MCI signals."""
