"""The in-memory state of sites and machines, crews, and switching machines off and on."""
