"""Every chunk of a layer, read by its place in the blob and held to the TOC."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import trio

from ipfs_store.errors import ChunkMismatch
from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.chunks import Data, cut_chunk, decode_stream, verify_chunk
from ipfs_store.formats.layer import Layer, read_file
from ipfs_store.formats.toc import Chunk, Entry

_RUN = 8 << 20
"""Bytes of a blob that are read at a time, streams that cross the border excepted."""
_ZEROS = bytes(1 << 20)


async def verify_chunks(blob: RangeReader, layer: Layer) -> int:
    """Read all chunks of ``layer`` in the order in which they lie in the blob; how many there are. Holes are none.

    Each is held to its digest, and each file to its own. Raises InvalidLayer, ChunkMismatch, and what ``blob`` raises. Memory: a run of 8 MiB of
    the blob, and what one stream of it decompresses to.
    """
    check = _Check(layer)
    count = 0
    for run in _runs(layer):
        start, end = run[0][1].offset, max(chunk.end for _, chunk in run)
        data = await blob.read(start, end - start)
        await trio.to_thread.run_sync(check.run, run, start, data)
        count += len(run)
    for entry in check.unfinished():
        async for _ in read_file(blob, layer, entry):
            pass
    return count


def _runs(layer: Layer) -> Iterator[list[tuple[Entry, Chunk]]]:
    """All chunks, as they lie in the blob, a few MiB at a time."""
    run: list[tuple[Entry, Chunk]] = []
    pairs = ((entry, chunk) for entry in layer.toc.entries for chunk in entry.chunks if chunk.end > chunk.offset)
    for entry, chunk in sorted(pairs, key=lambda pair: (pair[1].offset, pair[1].inner_offset)):
        if run and chunk.end - run[0][1].offset > _RUN and chunk.offset != run[-1][1].offset:
            yield run
            run = []
        run.append((entry, chunk))
    if run:
        yield run


class _Check:
    """Holds chunks to the TOC, and files to their digests. CPU work."""

    def __init__(self, layer: Layer) -> None:
        self._kind = layer.kind
        # Files whose chunk is not the whole of it, as the TOC says by the same digest of both: how far each is, and its hash.
        self._files: dict[str, tuple[Entry, int, Any]] = {
            entry.path: (entry, 0, hashlib.sha256())
            for entry in layer.toc.entries
            if entry.type == "reg"
            and entry.digest
            and entry.chunks
            and not (len(entry.chunks) == 1 and entry.chunks[0].digest == entry.digest)
        }

    def run(self, run: Sequence[tuple[Entry, Chunk]], start: int, data: bytes) -> None:
        """``data``: the blob from ``start``. Raises InvalidLayer, ChunkMismatch."""
        needed: dict[int, int] = {}
        ends: dict[int, int] = {}
        for _, chunk in run:
            needed[chunk.offset] = max(needed.get(chunk.offset, 0), chunk.inner_offset + chunk.size)
            ends[chunk.offset] = max(ends.get(chunk.offset, 0), chunk.end)
        at = -1
        stream: Data = b""
        for entry, chunk in run:
            if chunk.offset != at:
                at = chunk.offset
                stream = decode_stream(self._kind, data[at - start : ends[at] - start], needed[at])
            piece = cut_chunk(stream, chunk)
            verify_chunk(entry.path, chunk, piece)
            if entry.path in self._files:
                self._file(entry, chunk, piece)

    def unfinished(self) -> list[Entry]:
        """Files whose chunks lie elsewhere than in order in the blob; and those that end in a hole, or are nothing else."""
        return [entry for entry, _, _ in self._files.values()]

    def _file(self, entry: Entry, chunk: Chunk, piece: Data) -> None:
        _, number, hasher = self._files[entry.path]
        while number < len(entry.chunks) and entry.chunks[number].is_hole:
            _add_zeros(hasher, entry.chunks[number].size)
            number += 1
        if number < len(entry.chunks) and entry.chunks[number] is chunk:
            hasher.update(piece)
            number += 1
        self._files[entry.path] = (entry, number, hasher)
        if number == len(entry.chunks):
            del self._files[entry.path]
            if "sha256:" + hasher.hexdigest() != entry.digest:
                raise ChunkMismatch(f"{entry.path!r}: the TOC says {entry.digest}, its chunks make sha256:{hasher.hexdigest()}")


def _add_zeros(hasher: Any, size: int) -> None:
    for at in range(0, size, len(_ZEROS)):
        hasher.update(_ZEROS[: min(len(_ZEROS), size - at)])
