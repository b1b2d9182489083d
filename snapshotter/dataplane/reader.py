"""From a range of a file to its bytes: memory, then the disk, then the node.

What is fetched is an *extent*: the leaves that hold the streams which somebody wants. Everything else that lies whole in them is kept as
well, since it costs no round trip: a leaf holds dozens of small files, and the next one that is read is probably among them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from ipfs_store.errors import ChunkMismatch, InvalidLayer, IpfsStoreError, VerificationFailed
from ipfs_store.formats.chunks import Data
from snapshotter.cache import RecentChunks
from snapshotter.dataplane.ahead import MOST, InOrder
from snapshotter.dataplane.keeping import Chunks
from snapshotter.dataplane.layers import Readable
from snapshotter.dataplane.pieces import Pieces
from snapshotter.metadata.index import NO_DIGEST
from snapshotter.scheduler import Priority, Scheduler

_log = logging.getLogger(__name__)

Key = tuple[int, int]
"""A run of streams: (generation of the layer, offset in its blob)."""
Job = Callable[[], Awaitable[Chunks]]
Get = Callable[[Readable, int, int, frozenset[int]], Awaitable[Chunks]]
# Streams that lie one after the other are one fetch up to so many bytes of the blob: at 500 MB/s the event loop has 2 ms for a megabyte, and a
# fetch costs it some 0.5 ms. The kernel asks for 1 MiB at a time, which takes a little more where it does not compress.
RUN_BYTES = 5 << 18
_AHEAD_WAITING = 8
"""Stretches that wait to be read ahead, of all layers."""
_AHEAD_AT_ONCE = 2
"""One for each processor of a small machine; others have as much to do with those who wait."""
_AHEAD_PATIENCE = 5.0
"""Seconds that a stretch may take: it is here, but for the interior blocks that say where, perhaps."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Streams that are fetched together: a range of the blob, and which chunks somebody waits for."""

    start: int
    end: int
    wanted: frozenset[int]


class ChunkReader:
    """Reads ranges of files. ``threads`` limits hashing, decompression and the cache's disk: more than that only takes memory."""

    def __init__(self, *, recent: RecentChunks[Data], scheduler: Scheduler[Key, Chunks], threads: trio.CapacityLimiter) -> None:
        self.scheduler = scheduler
        self._recent = recent
        self._threads = threads
        self._flying: dict[Key, _Run] = {}
        """What brings a stream, by layer and offset."""
        self._in_order = InOrder()
        self._send_ahead, self._ahead = trio.open_memory_channel[Callable[[], Awaitable[None]]](_AHEAD_WAITING)

    async def run(self) -> None:
        """Run for ever: what is read next as things look is brought before anybody asks, where it is on this machine already."""
        async with trio.open_nursery() as nursery:
            for _ in range(_AHEAD_AT_ONCE):
                nursery.start_soon(self._read_ahead)

    async def _read_ahead(self) -> None:
        async for bring in self._ahead:
            try:
                with trio.move_on_after(_AHEAD_PATIENCE):
                    await bring()
            except IpfsStoreError as error:
                _log.debug("nothing is read ahead: %s", error.message)  # a reader will hear of it

    def _go_ahead(self, bring: Callable[[], Awaitable[None]]) -> None:
        with contextlib.suppress(trio.WouldBlock):  # others are ahead of themselves already
            self._send_ahead.send_nowait(bring)

    async def _follow_file(self, layer: Readable, node: int, start: int, end: int) -> None:
        """Of a large file that is read in order, what its reader wants next."""
        wanted = layer.table.chunks(node, start, end - start)
        found = await self._find(layer, wanted)
        missing = [index for index in wanted if index not in found]
        try:
            if missing:
                await self._fetch_all(layer, missing, found, Priority.BACKGROUND, ahead=True)
        finally:
            if len(found) < len(wanted):
                self._in_order.not_here((layer.generation, node))

    async def _follow_blob(self, layer: Readable, start: int, length: int) -> None:
        """Where small files are read one behind the other, the leaves of those behind."""
        low, high = await layer.blob.local_extent(start, length)
        if low < high:
            run = _Run(low, high, frozenset())
            self._note(layer, run, layer.table.chunks_between(low, high))
            job = partial(self._fetch, layer, run, self._obtain_local)
            await self._fly(layer, (layer.generation, low), job, Priority.BACKGROUND)

    async def read(self, layer: Readable, node: int, offset: int, size: int) -> Data | memoryview:
        """The bytes that the file has from ``offset``, at most ``size``, verified.

        Raises GaveUp (the node was away for too long) and VerificationFailed or InvalidLayer (it gave something else, twice).
        """
        table = layer.table
        wanted = table.chunks(node, offset, size)
        if not wanted:
            return b""
        start, end = offset, min(offset + size, table.size[node])
        following = self._in_order.following((layer.generation, node), start, end, table.size[node])
        if following is not None:
            self._go_ahead(partial(self._follow_file, layer, node, *following))
        chunks = await self._get(layer, wanted)
        if len(wanted) == 1:
            at = table.chunk_file_offset[wanted[0]]
            data = chunks[wanted[0]]
            return data if start == at and end - at == len(data) else memoryview(data)[start - at : end - at]
        pieces = []
        for index in wanted:
            at = table.chunk_file_offset[index]
            pieces.append(memoryview(chunks[index])[max(start - at, 0) : end - at])
        return b"".join(pieces)

    async def bring(self, layer: Readable, wanted: Sequence[int], priority: Priority) -> Chunks:
        """These chunks, verified, and what lies in the same leaves kept; raises as `read`."""
        return await self._get(layer, wanted, priority)

    async def _get(self, layer: Readable, wanted: Sequence[int], priority: Priority = Priority.DEMAND) -> Chunks:
        found = await self._find(layer, wanted)
        layer.counters.hits += len(found)
        layer.counters.misses += len(wanted) - len(found)
        # Somebody else's fetch may have ended while this reader looked on the disk; it may have left out what nobody asked it for.
        for _ in range(3):
            found |= self._in_memory(layer, [index for index in wanted if index not in found])
            missing = [index for index in wanted if index not in found]
            if not missing:
                return found
            await self._fetch_all(layer, missing, found, priority)
        for index in wanted:
            if index not in found:
                raise ChunkMismatch(
                    f"the stream at {layer.table.stream_offset[index]} of the blob does not hold the chunk that the TOC promises"
                    f" {_digest(layer, index)}"
                )
        return found

    async def _find(self, layer: Readable, wanted: Sequence[int]) -> Chunks:
        """What of the chunks is in memory or in the cache on the disk."""
        found = self._in_memory(layer, wanted)
        missing = [index for index in wanted if index not in found]
        if missing and not layer.keeper.misses(missing):
            # One trip to a thread for all: it costs 60 µs, a chunk that is not on the disk 5.
            for index, data in (await trio.to_thread.run_sync(layer.keeper.get, missing, limiter=self._threads)).items():
                found[index] = data
                self._recent.put(self._key(layer, index), data)
        return found

    def _in_memory(self, layer: Readable, wanted: Sequence[int]) -> Chunks:
        found: Chunks = {}
        for index in wanted:
            data = bytes(layer.table.chunk_size[index]) if layer.table.is_hole(index) else self._recent.get(self._key(layer, index))
            if data is not None:
                found[index] = data
        return found

    async def _fetch_all(self, layer: Readable, missing: Sequence[int], found: Chunks, priority: Priority, *, ahead: bool = False) -> None:
        """All runs at once; the first error cancels the others and is raised as itself. ``ahead``: only what is on this machine."""
        table = layer.table
        runs = self._plan(layer, missing, 2 * MOST if ahead else RUN_BYTES)
        if priority == Priority.DEMAND:
            start = min(table.stream_offset[index] for index in missing)
            end = max(table.stream_offset[index] + table.stream_length[index] for index in missing)
            following = layer.blob.following(start, end - start)
            if following is not None:
                self._go_ahead(partial(self._follow_blob, layer, *following))
        get = self._obtain_local if ahead else self._obtain
        jobs: dict[Key, Job] = {(layer.generation, run.start): partial(self._fetch, layer, run, get) for run in runs}
        if len(jobs) == 1:
            found |= await self._fly(layer, *jobs.popitem(), priority)
            return
        errors: list[Exception] = []

        async def one(key: Key, job: Job) -> None:
            nonlocal found
            try:
                found |= await self._fly(layer, key, job, priority)
            except Exception as error:  # noqa: BLE001 - raised below, out of the group that a nursery would make of it
                errors.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for key, job in jobs.items():
                nursery.start_soon(one, key, job)
        if errors:
            raise errors[0]

    async def _fly(self, layer: Readable, key: Key, job: Job, priority: Priority) -> Chunks:
        return await self.scheduler.fetch(key, job, group=layer.generation, priority=priority)

    def _plan(self, layer: Readable, missing: Sequence[int], longest: int) -> list[_Run]:
        """What brings these chunks: fetches that are under way, and others."""
        table = layer.table
        flying: dict[int, _Run] = {}
        runs: list[_Run] = []
        for index in sorted(missing, key=lambda index: (table.stream_offset[index], table.chunk_inner[index])):
            start = table.stream_offset[index]
            known = self._flying.get((layer.generation, start))
            if known is not None:
                flying[known.start] = known
                continue
            end = start + table.stream_length[index]
            last = runs[-1] if runs else None
            if last is not None and (start < last.end or (start == last.end and end - last.start <= longest)):
                runs[-1] = _Run(last.start, max(end, last.end), last.wanted | {index})
            else:
                runs.append(_Run(start, end, frozenset({index})))
        for run in runs:
            self._note(layer, run, table.chunks_between(run.start, run.end))
        return [*flying.values(), *runs]

    def _note(self, layer: Readable, run: _Run, chunks: Sequence[int]) -> None:
        for index in chunks:
            self._flying.setdefault((layer.generation, layer.table.stream_offset[index]), run)

    async def _fetch(self, layer: Readable, run: _Run, get: Get) -> Chunks:
        """Every good chunk of the run and what lies around it. What does not verify is fetched once more, in case it was the way and not the source."""
        low, high = run.start, run.end
        try:
            low, high = await layer.blob.extent(run.start, run.end - run.start)
            self._note(layer, run, layer.table.chunks_between(low, high))
            chunks = await get(layer, low, high, run.wanted)
        finally:
            for index in layer.table.chunks_between(low, high):
                key = layer.generation, layer.table.stream_offset[index]
                if self._flying.get(key) is run:
                    del self._flying[key]
        for index in run.wanted & chunks.keys():
            self._recent.put(self._key(layer, index), chunks[index])
        return chunks

    async def _obtain_local(self, layer: Readable, low: int, high: int, wanted: frozenset[int]) -> Chunks:
        chunks = await trio.to_thread.run_sync(self._unpack_local, layer, low, high, wanted, limiter=self._threads)
        if wanted <= chunks.keys():
            layer.counters.fetched += high - low
        return chunks

    async def _obtain(self, layer: Readable, low: int, high: int, wanted: frozenset[int]) -> Chunks:
        chunks = await self._obtain_local(layer, low, high, wanted)
        if wanted <= chunks.keys():
            return chunks
        with contextlib.suppress(VerificationFailed, InvalidLayer):
            chunks = await self._fetch_extent(layer, low, high, wanted)
            if wanted <= chunks.keys():
                return chunks
        return await self._fetch_extent(layer, low, high, wanted)

    async def _fetch_extent(self, layer: Readable, low: int, high: int, wanted: frozenset[int]) -> Chunks:
        data = await layer.blob.read(low, high - low)
        return await trio.to_thread.run_sync(self._unpack, layer, Pieces(low, [data]), wanted, limiter=self._threads)

    def _unpack_local(self, layer: Readable, low: int, high: int, wanted: frozenset[int]) -> Chunks:
        """The same of leaves that are all on this machine: they are not hashed, as the chunks are. Without what is wanted if anything is amiss:
        the node then finds out which leaf it is, and gets another one."""
        if any(layer.table.digest(index) == NO_DIGEST for index in wanted):
            return {}
        leaves = layer.blob.unverified(low, high - low)
        try:
            return {} if leaves is None else self._unpack(layer, Pieces(low, leaves), wanted, proven=False)
        except InvalidLayer:
            return {}

    def _unpack(self, layer: Readable, data: Pieces, wanted: frozenset[int], *, proven: bool = True) -> Chunks:
        """In a thread: decompress, cut, verify, keep on disk. A chunk that is not what the TOC promises is left out, and kept nowhere.

        ``proven``: whether ``data`` is what the layer's CID says, which is enough for chunks without a digest.
        """
        table = layer.table
        streams: dict[int, list[int]] = {}
        for index in table.chunks_between(data.start, data.end):
            if not table.is_hole(index):
                streams.setdefault(table.stream_offset[index], []).append(index)
        good: Chunks = {}
        for offset, indices in streams.items():
            asked = not wanted.isdisjoint(indices)
            if not asked and not layer.keeper.lacks(indices):
                continue
            length = max(table.stream_length[index] for index in indices)
            needed = max(table.chunk_inner[index] + table.chunk_size[index] for index in indices)
            try:
                stream = layer.decode(data.cut(offset, length), needed)
            except InvalidLayer:
                if asked:
                    raise
                continue  # cut off at the end of the extent, or damaged: whoever wants it will hear of it
            self._verify(layer, stream, indices, good, proven)
        layer.keeper.keep(good)
        return good

    def _verify(self, layer: Readable, stream: Data, indices: Sequence[int], good: Chunks, proven: bool) -> None:
        table = layer.table
        for index in indices:
            inner, size = table.chunk_inner[index], table.chunk_size[index]
            chunk = stream if not inner and len(stream) == size else stream[inner : inner + size]
            digest = table.digest(index)
            if len(chunk) == size and (hashlib.sha256(chunk).digest() == digest if digest != NO_DIGEST else proven):
                good[index] = chunk

    def _key(self, layer: Readable, index: int) -> tuple[bytes, bytes | int, int]:
        """In memory, equal chunks are one (with the size: a TOC may promise another one, and must not get this)."""
        digest = layer.table.digest(index)
        return (b"", layer.generation, index) if digest == NO_DIGEST else (layer.scope, digest, layer.table.chunk_size[index])


def _digest(layer: Readable, index: int) -> str:
    digest = layer.table.digest(index)
    return "" if digest == NO_DIGEST else f"(sha256:{digest.hex()})"
