"""Layer formats: bytes to tables of contents and chunks, and back. Sans-I/O; whoever reads the bytes is a RangeReader."""
