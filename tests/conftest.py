"""Options of the test suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kill-seconds", type=float, default=10, help="how long tests/kills kills (default %(default)s, for each mode of mounting)"
    )
    parser.addoption("--kill-seed", type=int, default=None, help="repeat a run of tests/kills")
