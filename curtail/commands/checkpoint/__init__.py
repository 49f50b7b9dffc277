"""`curtail checkpoint`: import from nanochat, export to other formats."""
