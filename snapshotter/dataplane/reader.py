"""From a range of a file to its bytes: memory, then the cache on disk, then the node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import trio

from ipfs_store.errors import ChunkMismatch, InvalidLayer, VerificationFailed
from snapshotter.cache import ChunkCache, RecentChunks
from snapshotter.dataplane.layers import Readable
from snapshotter.dataplane.tree import NO_DIGEST
from snapshotter.scheduler import Priority, Scheduler

Key = tuple[int, int]
"""A stream: (generation of the layer, offset in its blob)."""
Chunks = dict[int, bytes]
"""Verified chunks by their index in the layer's table."""


class ChunkReader:
    """Reads ranges of files. ``threads`` limits hashing, decompression and the cache's disk: more than that only takes memory."""

    def __init__(
        self, *, cache: ChunkCache, recent: RecentChunks, scheduler: Scheduler[Key, Chunks], threads: trio.CapacityLimiter
    ) -> None:
        self.scheduler = scheduler
        self._cache = cache
        self._recent = recent
        self._threads = threads

    async def read(self, layer: Readable, node: int, offset: int, size: int) -> bytes:
        """The bytes that the file has from ``offset``, at most ``size``, verified.

        Raises GaveUp (the node was away for too long) and VerificationFailed or InvalidLayer (it gave something else, twice).
        """
        table = layer.table
        wanted = table.chunks(node, offset, size)
        if not wanted:
            return b""
        chunks = await self._get(layer, wanted)
        start, end = offset, min(offset + size, table.size[node])
        if len(wanted) == 1:
            at = table.chunk_file_offset[wanted[0]]
            return chunks[wanted[0]][start - at : end - at]
        pieces = []
        for index in wanted:
            at = table.chunk_file_offset[index]
            pieces.append(memoryview(chunks[index])[max(start - at, 0) : end - at])
        return b"".join(pieces)

    async def _get(self, layer: Readable, wanted: Sequence[int]) -> Chunks:
        found: Chunks = {}
        missing = []
        for index in wanted:
            data = bytes(layer.table.chunk_size[index]) if layer.table.is_hole(index) else self._recent.get(self._key(layer, index))
            if data is None:
                missing.append(index)
            else:
                found[index] = data
        if missing:
            # One trip to a thread for all: it costs 60 µs, a chunk that is not on the disk 5.
            for index, data in (await trio.to_thread.run_sync(self._from_disk, layer, missing, limiter=self._threads)).items():
                found[index] = data
                self._recent.put(self._key(layer, index), data)
        layer.counters.hits += len(found)
        streams: dict[int, list[int]] = {}
        for index in missing:
            if index not in found:
                streams.setdefault(layer.table.stream_offset[index], []).append(index)
        if not streams:
            return found
        layer.counters.misses += len(wanted) - len(found)
        if len(streams) == 1:
            await self._from_stream(layer, *streams.popitem(), found)
        else:
            await self._from_streams(layer, streams, found)
        return found

    async def _from_streams(self, layer: Readable, streams: dict[int, list[int]], found: Chunks) -> None:
        """All at once; the first error cancels the others and is raised as itself."""
        errors: list[Exception] = []

        async def one(offset: int, indices: list[int]) -> None:
            try:
                await self._from_stream(layer, offset, indices, found)
            except Exception as error:  # noqa: BLE001 - raised below, out of the group that a nursery would make of it
                errors.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for offset, indices in streams.items():
                nursery.start_soon(one, offset, indices)
        if errors:
            raise errors[0]

    async def _from_stream(self, layer: Readable, offset: int, indices: list[int], found: Chunks) -> None:
        """Put the chunks ``indices`` of one stream into ``found``."""
        # Somebody else's fetch may have ended while this reader looked on the disk.
        late = {index: self._recent.get(self._key(layer, index)) for index in indices}
        got = {index: data for index, data in late.items() if data is not None}
        if len(got) < len(indices):
            got = await self.scheduler.fetch((layer.generation, offset), partial(self._fetch, layer, offset), priority=Priority.DEMAND)
        for index in indices:
            if index not in got:
                raise ChunkMismatch(
                    f"the stream at {offset} of the blob does not hold the chunk that the TOC promises {_digest(layer, index)}"
                )
            found[index] = got[index]

    async def _fetch(self, layer: Readable, offset: int) -> Chunks:
        """Every good chunk of the stream, cached. What does not verify is fetched once more, in case it was the way and not the source."""
        indices = [index for index in layer.table.chunks_of_stream(offset) if not layer.table.is_hole(index)]
        length = max(layer.table.stream_length[index] for index in indices)
        try:
            data = await layer.blob.read(offset, length)
            chunks = await trio.to_thread.run_sync(self._unpack, layer, indices, data, limiter=self._threads)
            again = len(chunks) < len(indices)
        except (VerificationFailed, InvalidLayer):
            again = True
        if again:
            data = await layer.blob.read(offset, length)
            chunks = await trio.to_thread.run_sync(self._unpack, layer, indices, data, limiter=self._threads)
        for index, chunk in chunks.items():
            self._recent.put(self._key(layer, index), chunk)
        return chunks

    def _unpack(self, layer: Readable, indices: Sequence[int], data: bytes) -> Chunks:
        """In a thread: decompress, cut, verify, keep on disk. A chunk that is not what the TOC promises is left out, and kept nowhere."""
        table = layer.table
        stream = layer.decode(data, max(table.chunk_inner[index] + table.chunk_size[index] for index in indices))
        good: Chunks = {}
        for index in indices:
            inner, size = table.chunk_inner[index], table.chunk_size[index]
            chunk = stream if not inner and len(stream) == size else stream[inner : inner + size]
            digest = table.digest(index)
            if len(chunk) != size:
                continue
            if digest == NO_DIGEST:  # the block's CID was verified; there is no more to be had, and nothing to find it by on the disk
                good[index] = chunk
            elif hashlib.sha256(chunk).digest() == digest:
                good[index] = chunk
                self._cache.put(digest, chunk)
        return good

    def _from_disk(self, layer: Readable, indices: Sequence[int]) -> Chunks:
        """In a thread: those of ``indices`` that the cache on disk has."""
        found: Chunks = {}
        for index in indices:
            digest = layer.table.digest(index)
            data = None if digest == NO_DIGEST else self._cache.get(digest, layer.table.chunk_size[index])
            if data is not None:
                found[index] = data
        return found

    def _key(self, layer: Readable, index: int) -> tuple[bytes | int, int]:
        """In memory, equal chunks are one (with the size: a TOC may promise another one, and must not get this)."""
        digest = layer.table.digest(index)
        return (layer.generation, index) if digest == NO_DIGEST else (digest, layer.table.chunk_size[index])


def _digest(layer: Readable, index: int) -> str:
    digest = layer.table.digest(index)
    return "" if digest == NO_DIGEST else f"(sha256:{digest.hex()})"
