"""The controller's folder: begin a run, back it up, restore it, keep it in order."""
