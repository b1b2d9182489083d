"""Which chunk is fetched when, and never twice at a time."""

from snapshotter.scheduler.fetches import FETCHES_IN_FLIGHT, GaveUp, Scheduler, Waiting
from snapshotter.scheduler.retry import delays
from snapshotter.scheduler.slots import Priority

__all__ = ["FETCHES_IN_FLIGHT", "GaveUp", "Priority", "Scheduler", "Waiting", "delays"]
