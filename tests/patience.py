"""Waiting in tests, so that what passes on this machine passes on one that is ten times slower."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 120.0
"""Seconds that a test waits for what has to come: reached by no machine that works, and shorter than the limit of a test."""
_PAUSE = 0.01

T = TypeVar("T")


def until(condition: Callable[[], T], what: Callable[[], object] | str = "") -> T:
    """What ``condition`` gives once that is true, for what has no event to wait on. ``what``, or what it gives, is said where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(_PAUSE)
    return found
