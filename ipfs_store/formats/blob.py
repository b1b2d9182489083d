"""Who reads bytes for the decoders: anything that can give a range of a blob."""

from __future__ import annotations

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
