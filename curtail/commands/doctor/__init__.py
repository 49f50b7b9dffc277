"""`curtail doctor`: checks of a machine, its network and its folders."""
