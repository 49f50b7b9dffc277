"""The soft state of sites and machines; switching machines off and on."""
