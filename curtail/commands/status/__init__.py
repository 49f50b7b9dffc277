"""`curtail status`: watch a run in the terminal."""
