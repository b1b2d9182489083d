"""Layers made for a test: a TOC and a blob of zlib streams, from a tar or from nothing, without the product's own formats."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ipfs_store.formats.toc import Chunk, Entry, EntryType, Toc

_KINDS: dict[bytes, EntryType] = {
    tarfile.DIRTYPE: "dir",
    tarfile.REGTYPE: "reg",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}
ROOT = Entry(path="", type="dir", mode=0o755, uid=0, gid=0, mtime=0)


@dataclass
class Layer:
    """A blob that grows, and its entries."""

    chunk_size: int = 65_536
    grouped: int = 0
    """Files of at most so many bytes share a stream, up to 64 KiB of them."""
    level: int = 1
    blob: bytearray = field(default_factory=bytearray)
    entries: dict[str, Entry] = field(default_factory=lambda: {"": ROOT})
    _group: list[tuple[Entry, bytes]] = field(default_factory=list)

    def add(self, path: str, kind: EntryType = "reg", content: bytes = b"", **fields: object) -> None:
        """An entry; the directories above it come along."""
        folder = path.rpartition("/")[0]
        if folder not in self.entries:
            self.add(folder, "dir", mode=0o755)
        values: dict[str, object] = {"mode": 0o644, "uid": 0, "gid": 0, "mtime": 1_600_000_000} | fields
        entry = Entry(path=path, type=kind, size=len(content), **values)  # type: ignore[arg-type]
        self.entries[path] = entry
        if kind != "reg" or not content:
            return
        if len(content) <= self.grouped:
            self._group.append((entry, content))
            if sum(len(data) for _, data in self._group) > 65_536:
                self._end_group()
            return
        chunks = []
        for at in range(0, len(content), self.chunk_size):
            piece = content[at : at + self.chunk_size]
            offset, end = self._stream(piece)
            chunks.append(_chunk(at, piece, offset, end, 0))
        self.entries[path] = msgspec.structs.replace(entry, chunks=tuple(chunks))

    def finish(self) -> tuple[bytes, Toc]:
        """(blob, TOC)"""
        self._end_group()
        return bytes(self.blob), Toc(entries=list(self.entries.values()), digest="sha256:" + "0" * 64)

    def _end_group(self) -> None:
        if self._group:
            offset, end = self._stream(b"".join(data for _, data in self._group))
            at = 0
            for entry, data in self._group:
                self.entries[entry.path] = msgspec.structs.replace(entry, chunks=(_chunk(0, data, offset, end, at),))
                at += len(data)
            self._group = []

    def _stream(self, data: bytes) -> tuple[int, int]:
        offset = len(self.blob)
        self.blob += zlib.compress(data, self.level)
        return offset, len(self.blob)


def _chunk(file_offset: int, data: bytes, offset: int, end: int, inner: int) -> Chunk:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Chunk(file_offset=file_offset, size=len(data), offset=offset, end=end, inner_offset=inner, digest=digest)


def decode(data: bytes, limit: int) -> bytes:
    """The stream, as `snapshotter.dataplane.layers.Opened.decode` has it."""
    from ipfs_store.errors import InvalidLayer

    try:
        return zlib.decompressobj().decompress(data, limit)
    except zlib.error as error:
        raise InvalidLayer(f"no zlib stream: {error}") from error


def from_tar(path: Path, **options: int) -> tuple[bytes, Toc]:
    """The tar's layer."""
    layer = Layer(**options)
    with tarfile.open(path) as tar:
        for member in tar:
            xattrs = {
                key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
                for key, value in member.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            seconds, _, fraction = str(member.pax_headers.get("mtime", member.mtime)).partition(".")
            file = tar.extractfile(member) if member.isreg() else None
            layer.add(
                member.name,
                _KINDS[member.type],
                file.read() if file else b"",
                mode=member.mode,
                uid=member.uid,
                gid=member.gid,
                mtime=int(seconds),
                mtime_ns=int(fraction.ljust(9, "0")) if fraction else 0,
                link=member.linkname,
                dev_major=member.devmajor,
                dev_minor=member.devminor,
                xattrs=xattrs,
            )
    return layer.finish()


def of_files(files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], **options: int) -> tuple[bytes, Toc]:
    """A layer of regular files."""
    layer = Layer(**options)
    for path, content in dict(files).items():
        layer.add(path, content=content)
    return layer.finish()
