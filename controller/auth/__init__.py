"""Who asks: credentials, tokens, nonces, the certificate authority."""
