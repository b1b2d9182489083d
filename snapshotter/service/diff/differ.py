"""From the mounts that containerd wants compared to a layer in its content store."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ipfs_store.oci.media_types import compression_of
from snapshotter.containerd.connection import Connection, unfinished_lease
from snapshotter.containerd.content import ContentStore
from snapshotter.containerd.ingest import PIECE
from snapshotter.service.diff.changes import changes
from snapshotter.service.diff.layer import Written, write_layer
from snapshotter.service.folders import Mount
from snapshotter.service.snapshots import NotOurs, Snapshotter

_log = logging.getLogger(__name__)
_UNCOMPRESSED = "containerd.io/uncompressed"
_KEPT_SECONDS = 900.0  # until whoever asked has made an image of it; our caller's own lease is not passed on to us


@dataclass(frozen=True, slots=True)
class Wish:
    """How the layer is wanted."""

    media_type: str
    labels: Mapping[str, str]
    latest: int | None
    """Times after this (seconds since the epoch) are set to it."""


class Differ:
    """Makes layers. Thread-safe."""

    def __init__(self, snapshotter: Snapshotter, scratch: Path, connect: Callable[[str], AbstractContextManager[Connection]]) -> None:
        """``connect``: to containerd, with a namespace. Layers lie in ``scratch`` until containerd has them."""
        self._snapshotter = snapshotter
        self._scratch = scratch
        self._connect = connect

    def diff(self, left: Sequence[Mount], right: Sequence[Mount], wish: Wish, namespace: str) -> Written:
        """Put the layer into containerd's content store. Raises NotOurs, StorageFailed, Unavailable, OSError."""
        try:
            compression = compression_of(wish.media_type)
        except ValueError as error:
            raise NotOurs(str(error)) from error
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            with self._snapshotter.written(left, right) as upper:
                merged = str(upper.merged)
                found = changes(str(upper.folder), merged)
                written = write_layer(found, merged, cast(BinaryIO, file), compression, latest=wish.latest)
            file.seek(0)
            labels = {**wish.labels, _UNCOMPRESSED: str(written.diff_id)}
            with self._connect(namespace) as connection:
                leased = unfinished_lease(connection, seconds=_KEPT_SECONDS)
                with ContentStore(leased).ingest(written.digest, written.size, labels) as ingest:
                    while ingest is not None and (piece := file.read(PIECE)):
                        ingest.write(piece)
        _log.info("layer %s of %d bytes made from %s", written.digest, written.size, upper.folder)
        return written
