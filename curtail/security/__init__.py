"""Authentication: tokens, agent keys, signed requests, TLS with a pinned authority."""
