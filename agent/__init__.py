"""One process per GPU machine, and the torchrun job it spawns. Importing it does nothing."""
