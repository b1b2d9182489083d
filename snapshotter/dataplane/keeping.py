"""Where verified chunks stay: in the cache of chunks for layers that are folders, in the store of contents for native ones."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ipfs_store.errors import StorageFailed
from ipfs_store.formats.chunks import Data
from snapshotter.cache import ChunkCache, ContentStore, on_disk
from snapshotter.metadata import ContentIndex
from snapshotter.metadata.index import NO_DIGEST

_log = logging.getLogger(__name__)

Chunks = dict[int, Data]
"""Verified chunks by their index in the layer's table."""
SMALL = 1 << 20
"""Bytes up to which a file is fetched whole when it is looked up, and comes to the store in one piece."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What of a layer is not on the disk."""

    chunks: Sequence[int]
    """In the order of the blob."""
    left: int
    """Bytes on disk that they will take."""
    total: int
    """The same of the whole layer."""


class Keeper(Protocol):
    """Called in threads; raises nothing: what cannot be kept is not kept."""

    def get(self, indices: Sequence[int]) -> Chunks:
        """Those of the chunks that are here, verified."""
        ...

    def misses(self, indices: Sequence[int]) -> bool:
        """Whether it is known, without a look at the disk, that none of the chunks is here."""
        ...

    def keep(self, chunks: Chunks) -> None:
        """Keep verified chunks."""
        ...

    def lacks(self, indices: Sequence[int]) -> bool:
        """Whether it is worth the work to decompress these, which nobody asked for."""
        ...

    def missing(self) -> Missing:
        """What is to be fetched for all of the layer to be here."""
        ...

    def apart(self) -> Sequence[Sequence[int]]:
        """Of what is missing: chunks that are of no use but together."""
        ...


class Table(Protocol):
    """What a `ChunkKeeper` needs of a table of chunks."""

    @property
    def by_stream(self) -> Sequence[int]: ...  # noqa: D102

    @property
    def chunk_size(self) -> Sequence[int]: ...  # noqa: D102

    def digest(self, chunk: int) -> bytes: ...  # noqa: D102


class ChunkKeeper:
    """Chunks by digest, shared within ``scope``."""

    def __init__(self, cache: ChunkCache, table: Table, scope: bytes) -> None:
        self._cache = cache
        self._table = table
        self._scope = scope

    def get(self, indices: Sequence[int]) -> Chunks:
        """See `Keeper`."""
        found: Chunks = {}
        for index in indices:
            digest = self._table.digest(index)
            # No digest: the block's CID was verified; there is no more to be had, and nothing to find it by on the disk.
            data = None if digest == NO_DIGEST else self._cache.get(digest, self._table.chunk_size[index], self._scope)
            if data is not None:
                found[index] = data
        return found

    def misses(self, indices: Sequence[int]) -> bool:
        """See `Keeper`."""
        return False

    def keep(self, chunks: Chunks) -> None:
        """See `Keeper`."""
        for index, data in chunks.items():
            digest = self._table.digest(index)
            if digest != NO_DIGEST:
                self._cache.put(digest, data, self._scope)

    def lacks(self, indices: Sequence[int]) -> bool:
        """See `Keeper`."""
        return not all(self._cache.has(self._table.digest(index), self._scope) for index in indices)

    def missing(self) -> Missing:
        """See `Keeper`. Chunks without digests are never kept, so they do not count."""
        table = self._table
        sizes = {digest: table.chunk_size[index] for index in table.by_stream if (digest := table.digest(index)) != NO_DIGEST}
        lacking = {digest for digest in sizes if not self._cache.has(digest, self._scope)}
        left = sum(on_disk(sizes[digest]) for digest in lacking)
        chunks = array("I")
        for index in table.by_stream:
            if (digest := table.digest(index)) in lacking:
                chunks.append(index)
                lacking.remove(digest)  # once for all files that have it
        return Missing(chunks, left, sum(map(on_disk, sizes.values())))

    def apart(self) -> Sequence[Sequence[int]]:
        """See `Keeper`."""
        return ()


class ContentKeeper:
    """Contents by id: small ones when they are complete, large ones chunk by chunk."""

    def __init__(self, store: ContentStore, index: ContentIndex) -> None:
        self._store = store
        self._index = index
        self._holes = index.kind == "zstd:chunked"  # no other format has them
        self._pieces: dict[int, int] = {}

    def get(self, indices: Sequence[int]) -> Chunks:
        """See `Keeper`."""
        index = self._index
        found: Chunks = {}
        for chunk in indices:
            number = index.chunk_content[chunk]
            digest = index.digest(chunk)
            if digest == NO_DIGEST:
                continue
            offset, size = index.chunk_file_offset[chunk], index.chunk_size[chunk]
            data = self._store.read_chunk(index.id(number), self._count(number), chunk - index.first[number], offset, size, digest)
            if data is not None:
                found[chunk] = data
        return found

    def misses(self, indices: Sequence[int]) -> bool:
        """See `Keeper`."""
        index = self._index
        wanted: dict[int, list[int]] = {}
        for chunk in indices:
            wanted.setdefault(index.chunk_content[chunk], []).append(chunk - index.first[index.chunk_content[chunk]])
        return all(self._store.partial.misses(index.id(number), chunks) for number, chunks in wanted.items())

    def keep(self, chunks: Chunks) -> None:
        """See `Keeper`."""
        index = self._index
        by_content: dict[int, list[int]] = {}
        for chunk in chunks:
            by_content.setdefault(index.chunk_content[chunk], []).append(chunk)
        try:
            for number, there in by_content.items():
                content, count, first = index.id(number), index.count[number], index.first[number]
                if len(there) == count:
                    self._store.put(content, [chunks[chunk] for chunk in sorted(there)])
                elif index.size[number] > SMALL:
                    pieces = [(chunk - first, index.chunk_file_offset[chunk], chunks[chunk]) for chunk in there]
                    self._store.write_chunks(content, index.size[number], self._count(number), pieces)
        except StorageFailed as error:
            self._store.room.say_once(error.message)

    def lacks(self, indices: Sequence[int]) -> bool:
        """See `Keeper`. A piece of a file is not worth it: whoever read before it wants it next, or nobody."""
        index = self._index
        numbers = {index.chunk_content[chunk] for chunk in indices}
        return any(index.count[number] == 1 and not self._store.has(index.id(number)) for number in numbers)

    def missing(self) -> Missing:
        """See `Keeper`."""
        index = self._index
        lacking = bytearray(index.contents)
        left = total = 0
        for number, size in enumerate(index.size):
            total += on_disk(size)
            if self._count(number) and not self._store.has(index.id(number)):
                lacking[number] = 1
                left += on_disk(size)
        chunks = array("I")
        if left:
            chunks.extend(chunk for chunk in index.by_stream if lacking[index.chunk_content[chunk]] and not index.is_hole(chunk))
        return Missing(chunks, left, total)

    def apart(self) -> Sequence[Sequence[int]]:
        """See `Keeper`: small files of several chunks, which come to the store in one piece."""
        index = self._index
        small = [number for number, count in enumerate(index.count) if count > 1 and index.size[number] <= SMALL]
        return [index.all_chunks(number) for number in small if self._count(number) and not self._store.has(index.id(number))]

    def _count(self, number: int) -> int:
        """How many chunks of the content have to be fetched: holes are none."""
        count = self._index.count[number]
        if not self._holes or not count:
            return count
        pieces = self._pieces.get(number)
        if pieces is None:
            pieces = self._pieces[number] = sum(not self._index.is_hole(chunk) for chunk in self._index.all_chunks(number))
        return pieces
