"""`curtail demo`: runs the whole system on one machine."""
