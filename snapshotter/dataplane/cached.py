"""How much of each layer is on disk: asked by people now and then, so it is counted when they ask."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from snapshotter.cache import chunk_name
from snapshotter.dataplane.layers import MountedLayer, NativeLayer, Readable


def cached_bytes(layers: Iterable[Readable], contents: Path, chunks: Path) -> list[int]:
    """Bytes of each layer's files that need no fetching, in order. Lists both folders once (30,000 files: 30 ms): call it in a thread."""
    whole, pieces = _names(contents), _names(chunks)
    found = []
    for layer in layers:
        match layer:
            case NativeLayer(index=index):
                found.append(sum(size for number, size in enumerate(index.size) if index.id(number) in whole))
            case MountedLayer(tree=tree, scope=scope):
                found.append(sum(size for number, size in enumerate(tree.chunk_size) if chunk_name(tree.digest(number), scope) in pieces))
            case _:
                found.append(0)
    return found


def _names(folder: Path) -> set[bytes]:
    """Files in the folders of ``folder``, whose names are hexadecimal."""
    names: set[bytes] = set()
    try:
        with os.scandir(folder) as below:
            inside = [entry.path for entry in below if entry.is_dir()]
    except FileNotFoundError:
        return names
    for path in inside:
        with os.scandir(path) as entries:
            names.update(bytes.fromhex(entry.name) for entry in entries if len(entry.name) == 64)
    return names
