"""What somebody else would write to add an operation."""
