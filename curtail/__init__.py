"""The shared core and the command line of curtail. Importing it does nothing."""

__version__ = "0.1.0"
