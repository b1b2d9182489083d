"""Layers by images of their metadata, mounted by the kernel: one EROFS mount for each image, whatever number of snapshots use it."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ipfs_store.errors import IpfsStoreError
from snapshotter.dataplane.client import DataPlane
from snapshotter.mounts import kernel
from snapshotter.mounts.interface import LayerSource, MountFailed
from snapshotter.mounts.stack import Backing, mount_image
from snapshotter.mounts.table import is_mount_point, mount_table

_log = logging.getLogger(__name__)


class Images(Protocol):
    """Whoever makes the images and serves what their files redirect to."""

    def image(self, layer: int, source: LayerSource) -> Path:
        """The file with the layer's image, complete; from then on its contents are served. Raises IpfsStoreError."""
        ...

    def forget(self, layer: int) -> None:
        """The layer's contents need not be served any more."""
        ...


class PlaneImages:
    """Images by the data plane."""

    def __init__(self, dataplane: DataPlane, *, timeout: float) -> None:
        """``timeout``: seconds for a layer's TOC to come."""
        self._dataplane = dataplane
        self._timeout = timeout

    def image(self, layer: int, source: LayerSource) -> Path:
        """See `Images.image`."""
        return self._dataplane.mount_native(layer, source, namespace=source.namespace, timeout=self._timeout).image

    def forget(self, layer: int) -> None:
        """See `Images.forget`."""
        self._dataplane.unmount(layer)


class NativeMounter:
    """A `LayerMounter` whose layers are EROFS mounts at ``FOLDER/NAME``. They outlive this process."""

    def __init__(self, images: Images, folder: Path, backing: Backing) -> None:
        """``folder`` is made, and only root may enter it: what is mounted there has set-id files of strangers."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._images = images
        self._folder = folder
        self._backing = backing
        self._points: dict[tuple[int, int], Path] = {}
        self._lock = threading.Lock()

    def mount(self, layer: int, source: LayerSource, instance: int = 0) -> Path:
        """See `LayerMounter.mount`."""
        with self._lock:
            point = self._points.get((layer, instance))
            if point is not None and is_mount_point(point):
                return point
        try:
            image = self._images.image(layer, source)
        except IpfsStoreError as error:
            raise MountFailed(error.message, hint=error.hint) from error
        # The same image is the same file, so its path is a name for it.
        point = self._folder / hashlib.sha256(str(image).encode()).hexdigest()[:16]
        if instance:
            point = point.with_name(f"{point.name}-{instance}")
        with self._lock:
            try:
                if not is_mount_point(point):
                    point.mkdir(mode=0o700, exist_ok=True)
                    mount_image(image, point, self._backing)
            except OSError as error:
                raise MountFailed(f"the metadata image {image} cannot be mounted: {error}") from error
            self._points[layer, instance] = point
        return point

    def unmount(self, layer: int) -> None:
        """See `LayerMounter.unmount`. The mount goes with its last layer."""
        with self._lock:
            points = {self._points.pop(key) for key in list(self._points) if key[0] == layer}
            for point in points - set(self._points.values()):
                self._take_away(point)
        self._images.forget(layer)

    def expire(self) -> None:
        """See `LayerMounter.expire`."""
        with self._lock:
            self._points.clear()

    def sweep(self) -> None:
        """See `LayerMounter.sweep`: for use when every layer has been asked for."""
        with self._lock:
            used = set(self._points.values())
            for point in self._folder.iterdir():
                if point not in used:
                    self._take_away(point)

    def _take_away(self, point: Path) -> None:
        try:
            # Lazily, since overlays that are still mounted have a hold of their own.
            while kernel.unmount(point, lazy=True):
                pass
            point.rmdir()
        except OSError as error:
            _log.warning("the mount at %s stays: %s", point, error)


def unmount_below(folders: Iterable[Path]) -> None:
    """Take away every mount below these folders, the last made first; for the end of everything. Raises OSError."""
    tops = tuple(folders)
    for mounted in reversed(mount_table()):
        if any(top in mounted.point.parents for top in tops):
            kernel.unmount(mounted.point, lazy=True)


def binds_of(folder: Path) -> list[Path]:
    """Where the overlays that are mounted below ``folder`` are mounted as well: for the containers that use them."""
    table = mount_table()
    ours = {mounted.device for mounted in table if mounted.kind == "overlay" and folder in mounted.point.parents}
    return [mounted.point for mounted in table if mounted.device in ours and folder not in mounted.point.parents]
