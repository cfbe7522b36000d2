"""Every operation without torch: its row of the table."""
