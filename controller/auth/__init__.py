"""Authentication and authorisation: credentials, tokens, nonces, the certificate authority."""
