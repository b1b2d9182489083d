"""What the snapshotter must not forget: snapshots and where remote layers come from, in SQLite."""

from snapshotter.state.filters import Filter, parse_filters
from snapshotter.state.snapshots import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    Kind,
    Missing,
    Remote,
    Snapshot,
    SnapshotState,
    StateError,
)

__all__ = [
    "AlreadyExists",
    "FailedPrecondition",
    "Filter",
    "InvalidArgument",
    "Kind",
    "Missing",
    "Remote",
    "Snapshot",
    "SnapshotState",
    "StateError",
    "parse_filters",
]
