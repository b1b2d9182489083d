"""A layer's tar mapped into memory, for whoever wants some of its files and not all of them in order."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.entries import normalise
from ipfs_store.formats.headers import Header
from ipfs_store.formats.limits import MAX_CHUNK
from ipfs_store.formats.tarball import TarReader, opened


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """An entry of a tar."""

    path: str
    """Normalised."""
    header: Header
    payload: memoryview
    """Contents of a regular file, without padding."""


@contextlib.contextmanager
def unpacked(path: Path, folder: Path | None = None) -> Iterator[memoryview]:
    """The uncompressed tar of the layer at ``path`` (plain, gzip or zstd, found out by its first bytes), mapped into memory.

    A compressed one is unpacked into a file without a name in ``folder``, so disk is needed and not memory. Raises InvalidLayer, OSError.
    """
    with opened(path, folder, seekable=True) as source:
        source.file.flush()
        size = source.file.seek(0, 2)
        if not size:
            yield memoryview(b"")
            return
        mapped = mmap.mmap(source.file.fileno(), size, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        # Not closed but let go: slices of it may live in the traceback of an error, and the map goes with the last of them.
        yield memoryview(mapped)


def members(tar: memoryview) -> Iterator[Member]:
    """The entries, in order. Raises InvalidLayer for a tar that is damaged, ends early, or has what no layer can have."""
    reader = TarReader(cast(BinaryIO, _Reader(tar)))
    while (header := reader.next()) is not None:
        if reader.is_sparse and header.size > MAX_CHUNK:
            raise InvalidLayer(f"{header.name[:300]!r} is a sparse file of {header.size} bytes, over the limit of {MAX_CHUNK}")
        payload = memoryview(reader.read(header.size)) if reader.is_sparse else tar[reader.at : reader.at + header.size]
        if len(payload) != header.size:
            raise InvalidLayer(f"the layer's tar ends inside of {header.name[:300]!r}")
        yield Member(normalise(header.name), header, payload)


class _Reader:
    """What TarReader needs of a file, over memory; io.BytesIO would copy it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def read(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        self._at += len(piece)
        return bytes(piece)

    def seekable(self) -> bool:
        return True

    def seek(self, by: int, whence: int) -> int:
        assert whence == 1, "TarReader seeks onward"
        self._at += by
        return self._at
