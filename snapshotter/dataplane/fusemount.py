"""What the kernel lets us set for the mount while it lives."""

from __future__ import annotations

import logging
from pathlib import Path

from snapshotter.holder.table import mounts_at

_log = logging.getLogger(__name__)


def set_read_ahead(mountpoint: Path, kib: int) -> None:
    """Set how much the kernel reads ahead, in KiB. What cannot be set is logged, no more."""
    lines = mounts_at(mountpoint)
    if not lines:
        return
    path = Path("/sys/class/bdi", lines[-1].device, "read_ahead_kb")
    try:
        path.write_text(str(kib))
    except OSError as error:
        _log.info("%s cannot be set to %d (%s): reads are slower", path, kib, error.strerror)
