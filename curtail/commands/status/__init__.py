"""`curtail status`: shows the status of a run in the terminal."""
