"""Networks, as modules and as graphs."""
