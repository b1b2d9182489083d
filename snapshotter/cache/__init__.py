"""Verified chunks on disk."""
