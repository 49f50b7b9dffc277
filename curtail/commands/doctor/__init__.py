"""`curtail doctor`: diagnostic checks of a machine, its network and its folders."""
