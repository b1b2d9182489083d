"""Benchmarks, one module each with ``run() -> list[Row]``; scripts/bench runs them."""
