"""A layer's tar as a stream, however it is compressed: one entry after the other, its contents read in pieces or passed over."""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import zstandard
from isal import igzip, igzip_threaded

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats import headers, sparse
from ipfs_store.formats.blob import Readable
from ipfs_store.formats.headers import BLOCK, Header
from ipfs_store.formats.limits import MAX_ENTRIES, MAX_TAR_EXTENSION
from ipfs_store.formats.names import GZIP_MAGIC, ZSTD_MAGIC, ZSTD_SKIPPABLE_MAGIC
from ipfs_store.formats.zstdframes import ZstdFile

_PIECE = 1 << 20
_BUFFER = 64 << 10
"""Bytes: what is larger is read past the buffer, so that a chunk is copied once: 4 % less of the processor than with a MiB."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tar that is being read."""

    file: BinaryIO
    """The uncompressed tar."""
    size: int
    """Bytes to be taken in, compressed or not, for telling progress."""
    taken: Callable[[], int]
    """How many of them have been."""


@contextlib.contextmanager
def opened(source: Path | Readable, folder: Path | None = None, *, seekable: bool = False) -> Iterator[Source]:
    """The tar of the layer in ``source`` (plain, gzip or zstd, found out by its first bytes).

    gzip is inflated in a thread of its own, 4 MiB ahead. If it must be ``seekable``, a compressed one is unpacked into a file without a name
    in ``folder`` first: that takes the disk of the uncompressed layer. Raises InvalidLayer, OSError.
    """
    with contextlib.ExitStack() as stack:
        raw: io.RawIOBase = stack.enter_context(source.open("rb", buffering=0) if isinstance(source, Path) else source.open())
        size = source.stat().st_size if isinstance(source, Path) else source.size
        magic = raw.read(4) or b""
        raw.seek(0)
        file: BinaryIO
        if magic[:2] == GZIP_MAGIC:
            file = cast(BinaryIO, stack.enter_context(igzip_threaded.open(raw, "rb")))  # type: ignore[no-untyped-call]
        elif magic == ZSTD_MAGIC or (magic[:1] >= b"\x50" and magic[1:] == ZSTD_SKIPPABLE_MAGIC[1:]):
            file = cast(BinaryIO, ZstdFile(cast(BinaryIO, raw)))
        else:
            file = stack.enter_context(io.BufferedReader(raw, _BUFFER))
            yield Source(file, size, file.tell)
            return
        if not seekable:
            yield Source(file, size, raw.tell)
            return
        target = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=_PIECE)))
        while piece := read(file, _PIECE):
            target.write(piece)
        total = target.tell()
        target.seek(0)
        yield Source(target, total, target.tell)


def read(file: BinaryIO, count: int) -> bytes:
    """``count`` bytes, or fewer at the end of ``file``; raises InvalidLayer where what it is compressed with is damaged."""
    try:
        data = file.read(count)
        if len(data) == count or not data:
            return data
        pieces = [data]
        missing = count - len(data)
        while missing and (data := file.read(missing)):
            pieces.append(data)
            missing -= len(data)
    except (igzip.BadGzipFile, EOFError, zstandard.ZstdError, ValueError) as error:
        raise InvalidLayer(f"the layer's compressed stream is damaged: {error}") from error
    return b"".join(pieces)


class TarReader:
    """The entries of a tar in order; what is not read of one is passed over."""

    def __init__(self, file: BinaryIO, *, at: int = 0, pax: dict[str, str] | None = None) -> None:
        self._file = file
        self._global: dict[str, str] = pax or {}
        self._left = 0
        self._padding = 0
        self._map: sparse.Reader | None = None
        self._seekable = file.seekable()
        self.at = at
        """Bytes of the tar that were read or passed over."""
        self.count = 0
        """Entries so far."""
        self.last = b""
        """After the last entry: the headers that belong to none, and the first block of the end, if there is one."""

    def next(self) -> Header | None:
        """The next entry, None at the end (a block of zeros, or no more bytes). Raises InvalidLayer."""
        block = self._following()
        begun = self.at - len(block)
        raw: list[bytes] = []
        preceding = b""
        pax: dict[str, str] = {}
        long_name = long_link = ""
        try:
            while True:
                if (not block and not raw) or block == _ZEROS:
                    self.last = preceding + b"".join(raw) + block  # extended headers of nothing, as a tar that was cut may have
                    return None
                if len(block) < BLOCK:
                    raise InvalidLayer("it ends inside of a header")
                raw.append(block)
                found = headers.extension(block)
                if found is None:
                    break
                flag, size = found
                if not 0 <= size <= MAX_TAR_EXTENSION:
                    raise InvalidLayer(f"an extended header has {size} bytes, over the limit of {MAX_TAR_EXTENSION}")
                data = self._bytes(size + -size % BLOCK)
                if len(data) < size + -size % BLOCK:
                    raise InvalidLayer("it ends inside of an extended header")
                if flag == headers.PAX_GLOBAL:
                    self._global = {**self._global, **headers.records(data[:size])}
                    preceding += b"".join((*raw, data))
                    raw = []
                    block = self._bytes(BLOCK)
                    continue
                raw.append(data)
                if flag == headers.PAX_LOCAL:
                    pax = headers.records(data[:size])
                elif flag == headers.GNU_LONG_NAME:
                    long_name = data[:size].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
                else:
                    long_link = data[:size].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
                block = self._bytes(BLOCK)
            if self._global:
                pax = {**self._global, **pax}
            header = headers.decode(block, b"".join(raw), pax, long_name, long_link, inherits=bool(self._global))
        except InvalidLayer as error:
            raise InvalidLayer(f"the layer's tar is damaged after {self.count} entries, at {begun}: {error.message}") from error
        header.preceding = preceding
        self.count += 1
        if self.count > MAX_ENTRIES:
            raise InvalidLayer(f"the layer has over {MAX_ENTRIES} entries")
        self._left, self._padding = header.size, -header.size % BLOCK
        self._map = sparse.reader(header, block, self) if header.type == "reg" and sparse.is_sparse(header) else None
        if self._map is not None:
            header.raw = plain(header)
        return header

    @property
    def following(self) -> int:
        """Where in the tar the next entry begins."""
        return self.at + self._left + self._padding

    @property
    def is_sparse(self) -> bool:
        """Whether the entry's contents are not all in the tar."""
        return self._map is not None

    @property
    def global_pax(self) -> dict[str, str]:
        """Records of global headers so far."""
        return self._global

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes of the entry's contents, fewer at their end; holes of sparse files are zeros. Raises InvalidLayer."""
        return self.stored(count) if self._map is None else self._map.read(count)

    def stored(self, count: int) -> bytes:
        """The same without holes, as the tar has it."""
        count = min(count, self._left)
        data = self._bytes(count)
        if len(data) != count:
            raise InvalidLayer(f"the layer's tar ends inside of the contents of its entry {self.count}, at {self.at}")
        self._left -= count
        return data

    def extra(self, count: int) -> bytes:
        """``count`` more bytes of header that belong to a sparse file; raises InvalidLayer."""
        data = self._bytes(count)
        if len(data) != count:
            raise InvalidLayer(f"the layer's tar ends inside of the header of its entry {self.count}, at {self.at}")
        return data

    def padding(self) -> bytes:
        """What is behind the contents, once they are read, up to the next header; raises InvalidLayer."""
        data = self._bytes(self._padding)
        if len(data) != self._padding:
            raise InvalidLayer(f"the layer's tar ends inside of the padding of its entry {self.count}, at {self.at}")
        self._padding = 0
        return data

    def rest(self) -> Iterator[bytes]:
        """All that follows the last entry, in pieces."""
        yield self.last
        while data := self._bytes(_PIECE):
            yield data

    def _bytes(self, count: int) -> bytes:
        if not count:
            return b""
        data = read(self._file, count)
        self.at += len(data)
        return data

    def _following(self) -> bytes:
        """Pass over what is left of the entry, and read the block behind it."""
        padding = self._padding
        if self._left or not padding:
            self._skip()
            return self._bytes(BLOCK)
        self._padding = 0  # the contents were read: padding and header in one
        return self._bytes(padding + BLOCK)[padding:]

    def _skip(self) -> None:
        count = self._left + self._padding
        self._padding = 0
        if count > _PIECE and self._seekable and self._left:
            # All but the last byte, so that a tar that ends too early is noticed.
            self._file.seek(count - 1, 1)
            self.at += count - 1
            count = self._left = 1
        while count:
            data = self._bytes(min(count, _PIECE))
            count -= len(data)
            if not data:
                if self._left:
                    raise InvalidLayer(f"the layer's tar ends inside of the contents of its entry {self.count}, at {self.at}")
                break
        self._left = 0


def plain(header: Header) -> bytes:
    """Blocks that say all of ``header`` by themselves: for what depends on a global header or has a sparse map."""
    info = tarfile.TarInfo(header.name)
    info.type = {
        "reg": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "char": tarfile.CHRTYPE,
        "block": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE,
    }[header.type]  # fmt: skip
    info.mode, info.uid, info.gid, info.size, info.mtime = header.mode & 0o7777, header.uid, header.gid, header.size, header.mtime
    info.linkname, info.uname, info.gname = header.link, header.uname, header.gname
    info.devmajor, info.devminor = header.dev_major, header.dev_minor
    written = ("path", "linkpath", "size", "uid", "gid", "uname", "gname")
    info.pax_headers = {key: value for key, value in header.pax.items() if not key.startswith("GNU.sparse.") and key not in written}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


_ZEROS = bytes(BLOCK)
