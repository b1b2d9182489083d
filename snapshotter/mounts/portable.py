"""Layers by the data plane's FUSE mount: works wherever there is FUSE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ipfs_store.errors import IpfsStoreError
from snapshotter.dataplane.client import DataPlane
from snapshotter.mounts.interface import LayerSource, MountFailed


class FuseMounter:
    """A `LayerMounter` over the data plane."""

    def __init__(self, dataplane: DataPlane, *, timeout: float) -> None:
        """``timeout``: seconds for a layer's TOC to come."""
        self._dataplane = dataplane
        self._timeout = timeout

    def mount(self, layer: int, source: LayerSource, instance: int = 0) -> Path:
        """See `LayerMounter.mount`: each layer has a directory of its own here."""
        try:
            return self._dataplane.mount(layer, source, namespace=source.namespace, timeout=self._timeout)
        except IpfsStoreError as error:
            raise MountFailed(error.message, hint=error.hint) from error

    def chain(self, layers: Sequence[int]) -> Path | None:
        """See `LayerMounter.chain`: there is none."""
        return None

    def unmount(self, layer: int) -> None:
        """See `LayerMounter.unmount`."""
        self._dataplane.unmount(layer)

    def expire(self) -> None:
        """See `LayerMounter.expire`: nothing is remembered here."""

    def sweep(self) -> None:
        """See `LayerMounter.sweep`: the data plane knows its layers."""
