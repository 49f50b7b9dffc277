"""Use cases: one method for each message of the HTTP contract."""
