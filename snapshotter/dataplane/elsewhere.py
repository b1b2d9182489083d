"""The same bytes out of another layer: a portable file whose own layer does not give what its TOC promises, or gives nothing.

Native files have the same by their content ids (`contents`). Asked for after an error only, so nothing is kept for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ipfs_store.errors import IpfsStoreError
from ipfs_store.formats.chunks import Data
from snapshotter.dataplane.layers import MountedLayer
from snapshotter.dataplane.reader import ChunkReader
from snapshotter.dataplane.tree import NO_DIGEST
from snapshotter.scheduler import Priority

_log = logging.getLogger(__name__)


async def read_elsewhere(
    reader: ChunkReader, layers: Iterable[MountedLayer], layer: MountedLayer, node: int, offset: int, size: int
) -> bytes | None:
    """What `ChunkReader.read` would give, each chunk from whichever of ``layers`` has it right; None if one of them is nowhere."""
    tree = layer.tree
    sources = [layer, *(other for other in layers if other is not layer and other.scope == layer.scope)]
    end = min(offset + size, tree.size[node])
    pieces = []
    for index in tree.chunks(node, offset, size):
        chunk = await _chunk(reader, sources, tree.digest(index), tree.chunk_size[index])
        if chunk is None:
            return None
        at = tree.chunk_file_offset[index]
        pieces.append(memoryview(chunk)[max(offset - at, 0) : end - at])
    return b"".join(pieces)


async def _chunk(reader: ChunkReader, layers: Iterable[MountedLayer], digest: bytes, size: int) -> Data | None:
    for layer in layers:
        index = layer.tree.with_digest(digest) if digest != NO_DIGEST else None
        if index is None or layer.tree.chunk_size[index] != size:
            continue
        try:
            return (await reader.bring(layer, [index], Priority.DEMAND))[index]
        except IpfsStoreError as error:
            _log.debug("sha256:%s is not to be had from layer %s: %s", digest.hex(), layer.digest or layer.number, error.message)
    return None
