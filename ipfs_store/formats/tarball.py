"""A layer's tar, unpacked to where any part of it can be looked at, and its entries with their raw headers."""

from __future__ import annotations

import contextlib
import mmap
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import zstandard
from isal import igzip

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.entries import normalise
from ipfs_store.formats.limits import MAX_ENTRIES, MAX_ZSTD_WINDOW
from ipfs_store.formats.names import GZIP_MAGIC, ZSTD_MAGIC, ZSTD_SKIPPABLE_MAGIC
from ipfs_store.formats.toc import EntryType

BLOCK = 512
_PIECE = 4 << 20
_XATTR = "SCHILY.xattr."
_TYPES: dict[bytes, EntryType] = {
    tarfile.REGTYPE: "reg", tarfile.AREGTYPE: "reg", tarfile.CONTTYPE: "reg", tarfile.GNUTYPE_SPARSE: "reg", tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block", tarfile.DIRTYPE: "dir", tarfile.FIFOTYPE: "fifo",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """An entry of a tar."""

    path: str
    """Normalised."""
    type: EntryType
    header: bytes
    """Everything before the contents: the header block and those of extensions (pax, GNU long names), as they stand."""
    payload: memoryview
    """Contents of a regular file, without padding."""
    info: tarfile.TarInfo
    mtime: int
    mtime_ns: int
    xattrs: dict[str, bytes]

    @property
    def padding(self) -> int:
        """Zero bytes behind the contents."""
        return -len(self.payload) % BLOCK


@contextlib.contextmanager
def unpacked(path: Path, folder: Path | None = None) -> Iterator[memoryview]:
    """The uncompressed tar of the layer at ``path`` (plain, gzip or zstd, found out by its first bytes), mapped into memory.

    A compressed one is unpacked into a file without a name in ``folder``, so disk is needed and not memory. Raises InvalidLayer, OSError.
    """
    with contextlib.ExitStack() as stack:
        file: BinaryIO = stack.enter_context(path.open("rb"))
        magic = file.read(4)
        file.seek(0)
        if magic[:2] == GZIP_MAGIC or magic == ZSTD_MAGIC or (magic[:1] >= b"\x50" and magic[1:] == ZSTD_SKIPPABLE_MAGIC[1:]):
            target = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=folder)))
            _unpack(file, target, gzip=magic[:2] == GZIP_MAGIC)
            file = target
        size = file.seek(0, 2)
        if not size:
            yield memoryview(b"")
            return
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        # Not closed but let go: slices of it may live in the traceback of an error, and the map goes with the last of them.
        yield memoryview(mapped)


def members(tar: memoryview) -> Iterator[Member]:
    """The entries, in order. Raises InvalidLayer for a tar that is damaged, ends early, or has what no layer can have."""
    end = count = 0
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Reader(tar)), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has seen
                count += 1
                if count > MAX_ENTRIES:
                    raise InvalidLayer(f"the layer has over {MAX_ENTRIES} entries")
                stored = info.size if info.isreg() and not info.issparse() else archive.offset - info.offset_data if info.issparse() else 0
                if info.offset_data + stored > len(tar):
                    raise InvalidLayer(f"the layer's tar ends inside of {info.name[:300]!r}")
                yield _member(tar, archive, info)
                end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        if not (isinstance(error, tarfile.ReadError) and not any(tar[: BLOCK * 2])):  # zeros only: a tar without entries
            raise InvalidLayer(f"the layer's tar is damaged after {count} entries, at {end}: {error}") from error
    # tarfile takes a header that it does not understand for the end.
    if any(tar[end : end + BLOCK]):
        raise InvalidLayer(f"the layer's tar is damaged after {count} entries: no header at {end}")


class _Reader:
    """What tarfile needs of a file, over memory; io.BytesIO would copy it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def read(self, count: int = -1) -> bytes:
        piece = self._data[self._at : self._at + count] if count >= 0 else self._data[self._at :]
        self._at += len(piece)
        return bytes(piece)

    def seek(self, at: int, whence: int = 0) -> int:
        self._at = max(at + (0, self._at, len(self._data))[whence], 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        """tarfile does not call it."""


def _member(tar: memoryview, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    path = normalise(info.name)
    kind = _TYPES.get(info.type)
    if kind is None:
        raise InvalidLayer(f"{path!r} is of type {info.type!r} in the layer's tar, which is none that a layer can have")
    if info.issparse():
        file = archive.extractfile(info)
        payload = memoryview(file.read() if file is not None else b"")
        header = _rewritten(info, archive)
    else:
        payload = tar[info.offset_data : info.offset_data + info.size] if kind == "reg" else tar[:0]
        header = bytes(tar[info.offset : info.offset_data]) if not archive.pax_headers else _rewritten(info, archive)
    seconds, nanoseconds = _time(info)
    xattrs = {
        name.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for name, value in info.pax_headers.items()
        if name.startswith(_XATTR)
    }
    return Member(path, kind, header, payload, info, seconds, nanoseconds, xattrs)


def _rewritten(info: tarfile.TarInfo, archive: tarfile.TarFile) -> bytes:
    """A header of its own for an entry that depends on what is not in its own: a global pax header, a sparse map."""
    plain = archive.tarinfo(info.name)
    for field in ("mode", "uid", "gid", "size", "mtime", "linkname", "uname", "gname", "devmajor", "devminor"):
        setattr(plain, field, getattr(info, field))
    plain.type = tarfile.REGTYPE if info.issparse() else info.type
    plain.pax_headers = {
        name: value for name, value in info.pax_headers.items() if not name.startswith("GNU.sparse.") and name not in ("size", "path")
    }
    return plain.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _time(info: tarfile.TarInfo) -> tuple[int, int]:
    text = info.pax_headers.get("mtime")
    if text is None:
        return int(info.mtime), 0
    whole, _, fraction = text.partition(".")
    try:
        nanoseconds = int(fraction[:9].ljust(9, "0")) if fraction else 0
        seconds = int(whole or 0)
    except ValueError as error:
        raise InvalidLayer(f"{info.name[:300]!r} has the time {text[:100]!r} in the layer's tar, which is none") from error
    if whole.startswith("-") and nanoseconds:  # -1.5 is half a second before -1
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def _unpack(source: BinaryIO, target: BinaryIO, *, gzip: bool) -> None:
    reader: BinaryIO
    if gzip:
        reader = cast(BinaryIO, igzip.open(source, "rb"))  # type: ignore[no-untyped-call]
    else:
        reader = cast(BinaryIO, zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).stream_reader(source, read_across_frames=True))
    written = 0
    while True:
        try:
            piece = reader.read(_PIECE)
        except (igzip.BadGzipFile, EOFError, zstandard.ZstdError, ValueError) as error:
            raise InvalidLayer(f"the layer's compressed stream is damaged after {written} uncompressed bytes: {error}") from error
        if not piece:
            return
        target.write(piece)
        written += len(piece)
