"""HTTP to the controller: control messages, resumable transfers, bandwidth, backoff."""
