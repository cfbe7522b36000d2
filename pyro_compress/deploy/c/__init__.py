"""A compressed network as one C99 file that multiplies its non-zeros alone."""
