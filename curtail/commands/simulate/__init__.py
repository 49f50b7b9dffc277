"""`curtail simulate`: simulate a run on a recorded or synthetic signal."""
