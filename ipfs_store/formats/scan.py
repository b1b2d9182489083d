"""A whole layer read once from its beginning to its end: entries, digests of files, of the blob and of the tar in it.

The reading is synchronous, in a thread of trio's; the bytes come from a `RangeReader`, a piece at a time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

import trio
from isal import igzip

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.entries import LEFT_OUT, check_target, implied_directories, normalise, resolve_links
from ipfs_store.formats.headers import Header
from ipfs_store.formats.names import GZIP_MAGIC, ZSTD_MAGIC, ZSTD_SKIPPABLE_MAGIC
from ipfs_store.formats.tarball import TarReader
from ipfs_store.formats.toc import NO_XATTRS, Entry
from ipfs_store.formats.zstdframes import ZstdFile

Compression = Literal["", "gzip", "zstd"]
PIECE = 1 << 20
Advance = Callable[[int], None]
"""Told how many more bytes were read."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a layer holds, and what it is."""

    entries: Sequence[Entry]
    """Parents before children, one for each path, the last of several; regular files with their digests, and without chunks. The parts of
    the format (TOC, landmarks) are left out."""
    members: dict[str, int]
    """Path -> which entry of the tar it is, counted from 0."""
    digest: str
    """``sha256:...`` of the blob."""
    size: int
    diff_id: str
    """``sha256:...`` of the uncompressed tar (image-spec, config.md, "Layer DiffID")."""
    uncompressed_size: int


def compression_of(head: bytes) -> Compression:
    """What a blob is compressed with, by its first four bytes; a zstd blob may begin with a skippable frame (RFC 8878, section 3.1.2)."""
    if head[:2] == GZIP_MAGIC:
        return "gzip"
    skippable = 0x50 <= (head[:1] or b"\0")[0] <= 0x5F and head[1:4] == ZSTD_SKIPPABLE_MAGIC[1:]
    return "zstd" if head[:4] == ZSTD_MAGIC or skippable else ""


async def scan(blob: RangeReader, advance: Advance | None = None) -> Scan:
    """Read all of ``blob``; raises InvalidLayer and what ``blob`` raises. Memory: a few MiB, 600 bytes an entry."""
    return await trio.to_thread.run_sync(_scan, blob, advance)


class TarStream:
    """A layer's tar from its beginning. To be used in a thread that trio started, one call at a time."""

    def __init__(self, blob: RangeReader, advance: Advance | None = None) -> None:
        self.blob = BlobFile(blob, advance)
        compression = compression_of(self.blob.peek(4))
        raw = cast(BinaryIO, io.BufferedReader(self.blob, PIECE))
        file: BinaryIO
        match compression:
            case "gzip":
                file = cast(BinaryIO, igzip.open(raw, "rb"))  # type: ignore[no-untyped-call]
            case "zstd":
                file = cast(BinaryIO, ZstdFile(raw))
            case _:
                file = raw
        self.file = HashedFile(file)
        self.tar = TarReader(cast(BinaryIO, self.file))
        self._raw = raw

    def drain(self) -> None:
        """Read all that is left, so that the digests are those of the whole."""
        for _ in self.tar.rest():
            trio.from_thread.check_cancelled()
        while self._raw.read(PIECE):  # behind the last member or frame
            pass


class BlobFile(io.RawIOBase):
    """A `RangeReader` as a file to be read in order, hashed as it is read."""

    def __init__(self, blob: RangeReader, advance: Advance | None = None) -> None:
        self._blob = blob
        self._advance = advance
        self._hash = hashlib.sha256()
        self._at = 0
        self._ahead = b""

    @property
    def digest(self) -> str:
        """Of what was read."""
        return "sha256:" + self._hash.hexdigest()

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, or fewer at the end, without taking them."""
        if not self._ahead:
            self._ahead = self._fetch(PIECE)
        return self._ahead[:count]

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: object) -> int:
        """See io.RawIOBase."""
        view = memoryview(cast(bytearray, buffer)).cast("B")
        data = self._ahead or self._fetch(max(len(view), PIECE))
        taken, self._ahead = data[: len(view)], data[len(view) :]
        view[: len(taken)] = taken
        self._hash.update(taken)
        return len(taken)

    def _fetch(self, count: int) -> bytes:
        count = min(count, self._blob.size - self._at)
        data = trio.from_thread.run(self._read, count) if count else b""
        self._at += len(data)
        return data

    async def _read(self, count: int) -> bytes:
        data = await self._blob.read(self._at, count)
        if self._advance is not None:
            self._advance(len(data))
        return data


class HashedFile:
    """What is read of a file, hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """Of what was read."""
        return "sha256:" + self._hash.hexdigest()

    def read(self, count: int) -> bytes:
        """See io.RawIOBase."""
        data = self._file.read(count)
        self._hash.update(data)
        self.size += len(data)
        return data

    def seekable(self) -> bool:
        """No: every byte has to be hashed."""
        return False


def _scan(blob: RangeReader, advance: Advance | None) -> Scan:
    stream = TarStream(blob, advance)
    found: dict[str, Entry] = {}
    members: dict[str, int] = {}
    imply: Callable[[str], None] = implied_directories(found)
    while (header := stream.tar.next()) is not None:
        trio.from_thread.check_cancelled()
        path = normalise(header.name)
        digest = _hashed(stream.tar) if header.type == "reg" else ""
        if path in LEFT_OUT or (not path and header.type != "dir"):
            continue
        imply(path)
        found.pop(path, None)
        found[path] = entry_of(path, header, digest)
        members[path] = stream.tar.count - 1
    stream.drain()
    entries = sorted(found.values(), key=lambda entry: (entry.path.count("/") + 1) if entry.path else 0)
    for entry in entries:
        folder = entry.path.rpartition("/")[0]
        if folder and found[folder].type != "dir":
            raise InvalidLayer(f"{entry.path!r} lies below {folder!r}, which is a {found[folder].type} in the layer's tar")
    return Scan(resolve_links(entries, found), members, stream.blob.digest, blob.size, stream.file.digest, stream.file.size)


def _hashed(tar: TarReader) -> str:
    digest = hashlib.sha256()
    while piece := tar.read(PIECE):
        trio.from_thread.check_cancelled()  # a blob of a megabyte can hold 32 GB of zeros
        digest.update(piece)
    return "sha256:" + digest.hexdigest()


def entry_of(path: str, header: Header, digest: str) -> Entry:
    """The entry of a layer that a tar's header describes; raises InvalidLayer."""
    device = header.type in ("char", "block")
    link = check_target(header.link, path) if header.type == "symlink" else normalise(header.link) if header.type == "hardlink" else ""
    return Entry(
        path, header.type, header.mode & 0o7777, header.uid, header.gid, header.mtime, header.mtime_ns, header.size, link,
        header.dev_major if device else 0, header.dev_minor if device else 0, header.xattrs if header.pax else NO_XATTRS, digest,
    )  # fmt: skip
