"""What the daemon must remember, in SQLite."""
