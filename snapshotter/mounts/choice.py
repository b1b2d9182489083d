"""Which mounter a machine gets: as configured, or what a probe mount says that its kernel can do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipfs_store.errors import InvalidInput
from snapshotter.dataplane.client import DataPlane
from snapshotter.holder.table import covering, mount_table
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
    if not _seen_by_others(root):
        _log.warning(
            "this process has a mount namespace of its own, and %s is on no shared mount in it: containerd does not see what is mounted there; "
            "run it without PrivateMounts=, PrivateTmp= and the like, or with %s as a shared mount", root, root,
        )  # fmt: skip
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


def _seen_by_others(root: Path) -> bool:
    """Whether mounts below ``root`` reach the machine's own namespace: ours is that one, or propagates to it."""
    try:
        if Path("/proc/self/ns/mnt").readlink() == Path("/proc/1/ns/mnt").readlink():
            return True
    except OSError:  # no right to look: a container, whose mounts are somebody's plan
        return True
    return covering(root.resolve(), mount_table()).shared
