"""The controller's folder: create a run, back it up, restore it, maintain it."""
