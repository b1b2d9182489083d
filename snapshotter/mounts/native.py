"""Layers by images of their metadata, mounted by the kernel: one EROFS mount for each image, whatever number of snapshots use it."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from ipfs_store.errors import IpfsStoreError
from snapshotter.dataplane.client import DataPlane
from snapshotter.holder.table import is_mount_point, mount_table
from snapshotter.mounts import kernel
from snapshotter.mounts.interface import LayerSource, MountFailed
from snapshotter.mounts.stack import Backing, mount_image

_log = logging.getLogger(__name__)
LONG = 16
"""Layers from which on a chain gets an image of its own. A name that is nowhere is looked for in every layer once, and a folder listed in each:
60 layers take twice as long to walk for the first time as their one image, 120 take five to eight times as long, 10 a tenth more."""


class Images(Protocol):
    """Whoever makes the images and serves what their files redirect to."""

    def image(self, layer: int, source: LayerSource) -> Path:
        """The file with the layer's image, complete; from then on its contents are served. Raises IpfsStoreError."""
        ...

    def chain(self, layers: Sequence[int]) -> Path | None:
        """The file with one image of all these layers, the lowest first; None while it is being made. Raises IpfsStoreError."""
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

    def chain(self, layers: Sequence[int]) -> Path | None:
        """See `Images.chain`."""
        made = self._dataplane.mount_chain(layers)
        return made.image if made is not None else None

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
        self._chains: dict[tuple[int, ...], Path] = {}
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
        with self._lock:
            point = self._points[layer, instance] = self._mounted(image, instance)
        return point

    def chain(self, layers: Sequence[int]) -> Path | None:
        """See `LayerMounter.chain`: from `LONG` layers on, once the image is made."""
        key = tuple(layers)
        if len(key) < LONG:
            return None
        with self._lock:
            point = self._chains.get(key)
            if point is not None and is_mount_point(point):
                return point
        try:
            image = self._images.chain(key)
            if image is None:
                return None
            with self._lock:
                point = self._chains[key] = self._mounted(image)
        except IpfsStoreError as error:
            _log.warning("a chain of %d layers stays a stack of them, which is slower: %s", len(key), error.message)
            return None
        return point

    def unmount(self, layer: int) -> None:
        """See `LayerMounter.unmount`. The mount goes with its last layer, that of a chain with its first."""
        with self._lock:
            points = {self._points.pop(key) for key in list(self._points) if key[0] == layer}
            points |= {self._chains.pop(key) for key in list(self._chains) if layer in key}
            for point in points - self._used():
                self._take_away(point)
        self._images.forget(layer)

    def expire(self) -> None:
        """See `LayerMounter.expire`."""
        with self._lock:
            self._points.clear()
            self._chains.clear()

    def sweep(self) -> None:
        """See `LayerMounter.sweep`: for use when every layer has been asked for."""
        with self._lock:
            used = self._used()
            for point in self._folder.iterdir():
                if point not in used:
                    self._take_away(point)

    def _used(self) -> set[Path]:
        return {*self._points.values(), *self._chains.values()}

    def _mounted(self, image: Path, instance: int = 0) -> Path:
        """Where the image is mounted; it is, when this returns. Raises MountFailed."""
        # The same image is the same file, so its path is a name for it.
        point = self._folder / hashlib.sha256(str(image).encode()).hexdigest()[:16]
        if instance:
            point = point.with_name(f"{point.name}-{instance}")
        try:
            if not is_mount_point(point):
                point.mkdir(mode=0o700, exist_ok=True)
                mount_image(image, point, self._backing)
        except OSError as error:
            raise MountFailed(f"the metadata image {image} cannot be mounted: {error}") from error
        return point

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
