"""Energy and carbon accounting, and the hash-chained ledger file that an auditor can check; pure."""
