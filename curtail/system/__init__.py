"""Operating system services: clock, durable writes, child processes, systemd, mDNS."""
