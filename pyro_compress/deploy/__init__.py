"""Running a compressed network elsewhere: exports that are verified, and speed that is measured."""
