"""Energy and carbon arithmetic, and the energy ledger as a file that an auditor checks; pure."""
