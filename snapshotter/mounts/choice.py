"""Which mounter a machine gets: as configured, or what a probe mount says that its kernel can do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipfs_store.errors import InvalidInput
from snapshotter.dataplane.client import DataPlane
from snapshotter.mounts.interface import LayerMounter
from snapshotter.mounts.native import NativeMounter, PlaneImages
from snapshotter.mounts.portable import FuseMounter
from snapshotter.mounts.probe import probe

_log = logging.getLogger(__name__)
MountMode = Literal["auto", "native", "portable"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The mounter, and what roots of containers are made of."""

    mounter: LayerMounter
    data: Sequence[Path]
    """The data-only layers; none: mounts are portable."""


def choose(mode: MountMode, plane: DataPlane, root: Path, *, timeout: float) -> Choice:
    """What ``mode`` means here; the log says which it is and why. Raises InvalidInput where native mounts are demanded and do not work."""
    portable = Choice(FuseMounter(plane, timeout=timeout), ())
    if mode == "portable":
        _log.info("mounts are portable: mount_mode says so")
        return portable
    data = plane.launch.data_layers
    ability = probe(root, data)
    if ability.backing is None:
        if mode == "native":
            raise InvalidInput(f"native mounts do not work here: {ability.why}", hint='say mount_mode = "auto" in the configuration')
        _log.warning("mounts are portable, since native ones do not work here: %s", ability.why)
        return portable
    _log.info("mounts are native: %s", ability.why)
    return Choice(NativeMounter(PlaneImages(plane, timeout=timeout), root / "images", ability.backing), data)
