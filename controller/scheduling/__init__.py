"""Which sites train now: reads the signal, decides, grants permits."""
