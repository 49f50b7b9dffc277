"""Simulation of a run on modelled sites, with the controller's own policy and accounting; pure."""
