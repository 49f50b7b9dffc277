"""The energy simulation: Vessim, solar panels and batteries, and the controller's clock."""
