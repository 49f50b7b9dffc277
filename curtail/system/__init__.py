"""What a process asks of its machine: time, durable writes, child processes, systemd, mDNS."""
