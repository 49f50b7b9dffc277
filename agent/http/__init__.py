"""HTTP client for the controller: control messages, resumable transfers, bandwidth limit, backoff."""
