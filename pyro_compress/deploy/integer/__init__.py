"""A compressed network as one C99 file in integers alone, for processors without a floating-point unit."""
