"""What may go when the cache is full, and in which order: first what no mounted layer has, then what was used longest ago.

The kernel reads native files without asking anybody, so nobody knows when one was read last. What is known is when a layer was: it is in use
for as long as it is mounted, and its kept metadata have the time at which it ceased to be (`KeptMetadata.touch`). A content that no mounted
layer has was used last when the last of its layers was. Of those that are mounted, the ones that were put first go first. Chunks of layers
that are folders are read through us, and have the time of that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from snapshotter.cache import Candidate, ChunkCache, ContentStore, chunk_name, on_disk
from snapshotter.dataplane.layers import MountedLayer
from snapshotter.metadata import ContentIndex
from snapshotter.metadata.kept import KeptMetadata

_PREFIX = 8
"""Bytes of an id that are looked at: ids are salted, and one that goes in place of another costs a fetch."""


def evictable(
    store: ContentStore,
    chunks: ChunkCache,
    kept: KeptMetadata,
    *,
    native: Mapping[str, ContentIndex],
    portable: Iterable[MountedLayer],
    pinned: Collection[str] = (),
) -> list[Candidate]:
    """All that may go, in no order. ``native``: the indexes of the layers that are mounted, by key; ``portable``: those that are folders.

    What a layer whose key is in ``pinned`` has stays; of folders only if they are mounted.
    """
    found = list(_contents(store, kept, native, pinned))
    names: dict[bytes, bool] = {}
    for layer in portable:
        stays = layer.key in pinned
        for chunk in range(len(layer.tree.chunk_size)):
            name = chunk_name(layer.tree.digest(chunk), layer.scope)
            names[name] = stays or names.get(name, False)
    for used, size, path in chunks.files():
        stays_here = names.get(_id(path))
        if not stays_here:
            found.append(Candidate(stays_here is not None, used, size, path))
    # Behind the contents that are of the same time: they are small, and what is in the store is of no use without them.
    return found + [Candidate(False, used, on_disk(size), str(path)) for used, size, path in kept.files({*native, *pinned})]


def _contents(store: ContentStore, kept: KeptMetadata, native: Mapping[str, ContentIndex], pinned: Collection[str]) -> Iterator[Candidate]:
    # By the first byte of the ids: what is in memory is then a 256th of the ids of all layers that were ever mounted.
    files: list[list[tuple[float, int, str]]] = [[] for _ in range(256)]
    for file in store.files():
        files[file.content[0]].append((file.put, file.size, file.path))
    for used, size, path in store.partial.files():
        files[_id(path)[0]].append((used, size, path))
    unmounted = sorted((used, key) for used, key in kept.used() if key not in native)
    indexes = [(used, index) for used, key in unmounted if (index := kept.index(key)) is not None]
    staying = [index for key in pinned if (index := native.get(key) or kept.index(key)) is not None]
    for first, those in enumerate(files):
        if not those:
            continue
        used_last = {index.id(number)[:_PREFIX]: used for used, index in indexes for number in index.beginning(first)}
        wanted = {index.id(number)[:_PREFIX] for index in native.values() for number in index.beginning(first)}
        stays = {index.id(number)[:_PREFIX] for index in staying for number in index.beginning(first)}
        for put, size, path in those:
            prefix = _id(path)[:_PREFIX]
            if prefix in stays:
                continue
            if prefix in wanted:
                yield Candidate(True, put, size, path)
            else:
                yield Candidate(False, used_last.get(prefix, 0), size, path)


def _id(path: str) -> bytes:
    return bytes.fromhex(path.rpartition("/")[2])
