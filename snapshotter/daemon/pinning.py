"""``ipfs-snapshotter pin`` and ``unpin``: which layers an image has here, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ipfs_store.errors import ImageNotFound, InvalidInput, StorageFailed, Unavailable
from snapshotter.daemon.config import Config
from snapshotter.daemon.process import data_plane
from snapshotter.daemon.status import Row, chain_of, image_of, snapshots
from snapshotter.dataplane.client import DataPlane
from snapshotter.dataplane.control import LayerStatus
from snapshotter.state import Kind

_LOOK_EVERY = 0.5
"""Seconds between two looks at how far the layers are."""


def pin(config: Config, image: str, namespace: str) -> list[int]:
    """Have the image's layers kept whole; their numbers. They are fetched by the data plane, whoever waits for it.

    Raises ImageNotFound, InvalidInput (nothing to pin), DataPlaneFailed (they do not fit), DataPlaneGone.
    """
    layers = layers_of(config, image, namespace)
    data_plane(config).pin(image, layers)
    return layers


def unpin(config: Config, image: str, namespace: str) -> list[int]:
    """Let go of them; raises as `pin`."""
    layers = layers_of(config, image, namespace)
    data_plane(config).pin(image, layers, pinned=False)
    return layers


def follow(config: Config, layers: list[int], show: Callable[[int], None]) -> None:
    """Return when the layers are here completely; ``show`` gets the bytes that are left, now and then.

    Raises StorageFailed (some of it cannot be kept, or fetched, now; it is tried again), DataPlaneGone.
    """
    plane = data_plane(config)
    while True:
        found = _pinned(plane, layers)
        failed = next((layer.pin_error for layer in found if layer.pin_error), "")
        if failed:
            raise StorageFailed(failed, hint="it is tried again in the background; `ipfs-snapshotter status` shows how far it is")
        left = [layer.pin_left for layer in found]
        show(sum(one or 0 for one in left))
        if all(one == 0 for one in left):
            return
        time.sleep(_LOOK_EVERY)


def _pinned(plane: DataPlane, layers: list[int]) -> list[LayerStatus]:
    found = [layer for layer in plane.status().layers if layer.layer in layers]
    if len(found) < len(layers) or not all(layer.pinned for layer in found):
        raise InvalidInput("the image was removed or unpinned meanwhile")
    return found


def layers_of(config: Config, image: str, namespace: str) -> list[int]:
    """Numbers of the lazy layers of an image: by the name it was pulled by, its chain ID, a layer's digest or CID, or containerd's name for it."""
    rows = snapshots(Path(config.root))
    chain = _chain(rows, image) or _chain(rows, _containerds(config, image, namespace))
    if not chain:
        raise ImageNotFound(f"no layer of {image!r} is here", hint="`ipfs-snapshotter status` lists images and layers")
    layers = [row.id for row in chain if row.cid]
    if not layers:
        raise InvalidInput(f"{image!r} has no layer out of IPFS: all of it is on the disk")
    return layers


def _chain(rows: dict[int, Row], image: str) -> list[Row]:
    committed = [row for row in rows.values() if row.kind is Kind.COMMITTED]
    below = {row.parent for row in committed}
    for row in committed:
        chain = chain_of(rows, row)
        # In a namespace's own cache a snapshot is called NAMESPACE/CHAIN ID.
        if row.name.rpartition("/")[2] == image or (row.id not in below and image_of(chain) == image):
            return chain
    return [row for row in committed if row.cid == image or (image in row.labels.values() and image.startswith("sha256:"))][:1]


def _containerds(config: Config, image: str, namespace: str) -> str:
    """The chain ID of an image that containerd has by this name; empty if it has none, or is not there."""
    from snapshotter.containerd.connection import connect
    from snapshotter.containerd.local import local_image

    try:
        with connect(config.containerd.address, namespace) as connection:
            return str(local_image(connection, image).chain_id or "")
    except (ImageNotFound, Unavailable):
        return ""
