"""A run: its configuration, its folder, what is done with it."""
