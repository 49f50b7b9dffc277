"""Tokens, keys and signatures, pinned TLS."""
