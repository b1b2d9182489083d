"""Who reads bytes for the decoders, and takes them from the writers."""

from __future__ import annotations

from io import RawIOBase
from typing import Protocol


class RangeReader(Protocol):
    """Random access to one blob (a file, a UnixFS file of an IPFS node, a registry's blob)."""

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; the caller stays inside ``size``."""
        ...


class Readable(Protocol):
    """A blob that is read in order, and need not all be there yet."""

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        ...

    def open(self) -> RawIOBase:
        """The blob from its beginning, anew at each call; seekable. Reads wait for bytes that are not there yet. Raises OSError."""
        ...


class Output(Protocol):
    """What a blob is written to: a file, or what is sent away."""

    def write(self, data: bytes, /) -> int:
        """Append all of ``data``."""
        ...

    def seek(self, offset: int, /) -> int:
        """To the beginning only, before ``truncate``."""
        ...

    def truncate(self) -> int:
        """Forget what is written from here on."""
        ...
