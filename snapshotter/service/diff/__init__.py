"""Layers out of what containers wrote: containerd's diff API, read from the upper directory instead of by walking two whole trees."""
