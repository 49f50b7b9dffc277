"""The energy simulation: Vessim, panels and batteries, the replay clock."""
