"""The page of a report, from its figures."""
