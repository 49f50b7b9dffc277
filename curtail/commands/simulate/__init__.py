"""`curtail simulate`: plan a run on a recorded or invented signal."""
