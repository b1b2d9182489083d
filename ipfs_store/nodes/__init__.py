"""Nodes: where blocks live and where they come from."""
