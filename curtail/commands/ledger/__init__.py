"""`curtail ledger`: check, verify, export, settle and total the accounts of a run."""
