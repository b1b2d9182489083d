"""Processes, configuration, signals."""
