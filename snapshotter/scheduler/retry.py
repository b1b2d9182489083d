"""How long to wait between two tries."""

from __future__ import annotations

import random
from collections.abc import Iterator

FIRST_DELAY = 0.1
"""Seconds before the second try: a peer that restarts its connection is back by then, and nobody notices 0.1 s."""
LONGEST_DELAY = 5.0
"""Seconds between tries at most: what comes back after a minute is noticed within five seconds of it."""


def delays(rng: random.Random) -> Iterator[float]:
    """Seconds to wait before the second, third... try: doubling from FIRST_DELAY to LONGEST_DELAY, each cut by up to a half at random.

    The random half keeps the readers of many machines, who all lost the same peer at the same moment, from returning to it together.
    """
    delay = FIRST_DELAY
    while True:
        yield delay * rng.uniform(0.5, 1.0)
        delay = min(2 * delay, LONGEST_DELAY)
