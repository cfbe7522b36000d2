"""Names, files and folders -> Splits."""
