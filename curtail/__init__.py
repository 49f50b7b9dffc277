"""Shared core and command line of curtail; importing the package has no side effects."""

__version__ = "0.1.0"
