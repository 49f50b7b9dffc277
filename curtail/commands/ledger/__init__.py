"""`curtail ledger`: check, verify, export, settle and total the ledgers of a run."""
