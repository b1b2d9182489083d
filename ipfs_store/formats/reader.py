"""One interface for every layer that can be read: list it, read a file of it by path, verify the whole."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import trio

from ipfs_store.errors import BlobMismatch, ChunkMismatch, InvalidInput, NotFound, NotSeekable
from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.entries import normalise
from ipfs_store.formats.everychunk import verify_chunks
from ipfs_store.formats.layer import Layer, open_layer, read_file
from ipfs_store.formats.scan import PIECE, Advance, Scan, TarStream, compression_of, scan
from ipfs_store.formats.toc import Entry


@dataclass(frozen=True, slots=True)
class Verified:
    """What a layer turned out to be; every byte of it was read."""

    digest: str
    """``sha256:...`` of the blob."""
    size: int
    diff_id: str
    """``sha256:...`` of the uncompressed tar."""
    uncompressed_size: int
    chunks: int
    """How many chunks were read by their place in the blob, and are what the TOC says; 0 for a layer without a TOC."""
    differences: tuple[str, ...]
    """What the TOC says otherwise than the tar, a line for each path. No error: the TOC is respected (estargz, "TOC and TOCEntries"), but
    tools that unpack the tar see something else."""


class LayerReader(Protocol):
    """A layer blob, opened."""

    @property
    def format(self) -> str:
        """``estargz``, ``zstd:chunked``, ``stargz``, ``tar``, ``tar+gzip``, ``tar+zstd``."""
        ...

    @property
    def lazy(self) -> bool:
        """Whether a file is read without what lies before it."""
        ...

    async def entries(self) -> Sequence[Entry]:
        """Every entry, parents before children; a layer that is not lazy is read to its end for that, once. Raises InvalidLayer."""
        ...

    def read(self, path: str, offset: int = 0, size: int | None = None) -> AsyncGenerator[bytes, None]:
        """The contents of a regular file in pieces, or ``size`` bytes of them from ``offset``; a hard link is followed, a symbolic one not.

        What comes is verified: against the TOC, or, where there is none, at the end of the whole file against what `entries` saw. Raises
        NotFound, InvalidInput (no regular file), InvalidLayer, ChunkMismatch.
        """
        ...

    async def verify(self, *, digest: str = "", diff_id: str = "", advance: Advance | None = None) -> Verified:
        """Read everything; raises BlobMismatch where it has not the ``digest`` or ``diff_id`` given, ChunkMismatch, InvalidLayer.

        ``advance`` is told how many bytes of the blob were read, a piece at a time.
        """
        ...


async def open_reader(
    blob: RangeReader, annotations: Mapping[str, str] | None = None, *, toc_digest: str = "", external_toc: RangeReader | None = None
) -> LayerReader:
    """A reader for whatever ``blob`` is; arguments and errors as `layer.open_layer`, but that a layer without a TOC is read in order."""
    try:
        layer = await open_layer(blob, annotations, toc_digest=toc_digest, external_toc=external_toc)
    except NotSeekable:
        return PlainReader(blob, await blob.read(0, min(4, blob.size)))
    return LazyReader(blob, layer)


class LazyReader:
    """See `LayerReader`: a layer with a table of contents."""

    lazy = True

    def __init__(self, blob: RangeReader, layer: Layer) -> None:
        self.layer = layer
        self._blob = blob

    @property
    def format(self) -> str:
        """See `LayerReader`."""
        return self.layer.kind

    async def entries(self) -> Sequence[Entry]:
        """See `LayerReader`."""
        return self.layer.toc.entries

    async def read(self, path: str, offset: int = 0, size: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `LayerReader`."""
        async with aclosing(read_file(self._blob, self.layer, _regular(self.layer.toc.by_path, path), offset, size)) as pieces:
            async for piece in pieces:
                yield piece

    async def verify(self, *, digest: str = "", diff_id: str = "", advance: Advance | None = None) -> Verified:
        """See `LayerReader`."""
        found = await scan(self._blob, advance)
        _expect(found, digest, diff_id)
        chunks = await verify_chunks(self._blob, self.layer)
        return _verified(found, chunks, tuple(_differences(self.layer.toc.by_path, found)))


class PlainReader:
    """See `LayerReader`: a tar, tar.gz or tar.zst, which is read from its beginning every time."""

    lazy = False

    def __init__(self, blob: RangeReader, head: bytes) -> None:
        self._blob = blob
        compression = compression_of(head)
        self.format = f"tar+{compression}" if compression else "tar"
        self._scan: Scan | None = None
        self._by_path: Mapping[str, Entry] = {}

    async def entries(self) -> Sequence[Entry]:
        """See `LayerReader`."""
        return (await self._scanned()).entries

    async def read(self, path: str, offset: int = 0, size: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `LayerReader`."""
        found = await self._scanned()
        entry = _regular(self._by_path, path)
        end = entry.size if size is None else min(offset + size, entry.size)
        stream = await trio.to_thread.run_sync(_at_member, self._blob, found.members[entry.path])
        whole, at = hashlib.sha256(), 0
        while at < end:
            piece = await trio.to_thread.run_sync(stream.tar.read, PIECE)
            whole.update(piece)
            at += len(piece)
            if not piece or (at == entry.size and "sha256:" + whole.hexdigest() != entry.digest):
                raise ChunkMismatch(f"{entry.path!r} had the digest {entry.digest} when the layer was listed, and has another one now")
            begin, last = max(offset - at + len(piece), 0), end - at + len(piece)
            if begin < len(piece):
                yield piece[begin:last]

    async def verify(self, *, digest: str = "", diff_id: str = "", advance: Advance | None = None) -> Verified:
        """See `LayerReader`."""
        found = self._scan = await scan(self._blob, advance)
        _expect(found, digest, diff_id)
        return _verified(found, 0, ())

    async def _scanned(self) -> Scan:
        if self._scan is None or not self._by_path:
            self._scan = self._scan or await scan(self._blob)
            self._by_path = {entry.path: entry for entry in self._scan.entries}
        return self._scan


def _at_member(blob: RangeReader, number: int) -> TarStream:
    stream = TarStream(blob)
    while stream.tar.count <= number and stream.tar.next() is not None:
        trio.from_thread.check_cancelled()
    return stream


def _regular(by_path: Mapping[str, Entry], path: str) -> Entry:
    entry = by_path.get(normalise(path))
    if entry is None:
        raise NotFound(f"the layer has no {path[:300]!r}")
    if entry.type == "hardlink":
        entry = by_path[entry.link]
    if entry.type != "reg":
        raise InvalidInput(f"{path[:300]!r} is a {entry.type} in the layer, not a regular file")
    return entry


def _expect(found: Scan, digest: str, diff_id: str) -> None:
    if digest and found.digest != digest:
        raise BlobMismatch(f"the layer blob of {found.size} bytes has the digest {found.digest}, not {digest}")
    if diff_id and found.diff_id != diff_id:
        raise BlobMismatch(f"the layer's tar of {found.uncompressed_size} bytes has the DiffID {found.diff_id}, not {diff_id}")


def _verified(found: Scan, chunks: int, differences: tuple[str, ...]) -> Verified:
    return Verified(found.digest, found.size, found.diff_id, found.uncompressed_size, chunks, differences)


_COMPARED = ("type", "mode", "uid", "gid", "mtime", "size", "link", "dev_major", "dev_minor", "xattrs", "digest")


def _differences(by_path: Mapping[str, Entry], found: Scan) -> Sequence[str]:
    lines = []
    there = {entry.path: entry for entry in found.entries}
    for path in sorted(by_path.keys() | there.keys()):
        ours, tars = by_path.get(path), there.get(path)
        if ours is None or tars is None:
            lines.append(f"{path!r} is only in the {'tar' if ours is None else 'TOC'}")
            continue
        # The TOC has no place for what a tar says at a hard link; legacy stargz leaves digests out; an empty file has none in zstd:chunked.
        compared = ("type", "link") if tars.type == "hardlink" else _COMPARED if ours.digest else _COMPARED[:-1]
        wrong = [name for name in compared if getattr(ours, name) != getattr(tars, name)]
        if wrong:
            lines.append(f"{path!r}: " + ", ".join(f"{name} {getattr(ours, name)!r}, in the tar {getattr(tars, name)!r}" for name in wrong))
    return lines
