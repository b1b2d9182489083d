"""Keeps the FUSE connection while those who serve it come and go: a small process of its own that outlives every data plane.

It imports the standard library alone, since it stays in memory as long as a container runs, and whatever it does not import cannot break.
"""
