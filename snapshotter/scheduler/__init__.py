"""Which chunk is fetched when, and never twice at a time."""
