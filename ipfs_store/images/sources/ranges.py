"""Parts of a blob of an image, without the rest of it where the source can."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import trio

from ipfs_store.formats.blob import RangeReader
from ipfs_store.images.model import Image
from ipfs_store.oci import Descriptor


@runtime_checkable
class Ranged(Protocol):
    """A source that can give parts of a blob."""

    def open_ranges(self, descriptor: Descriptor) -> AbstractAsyncContextManager[RangeReader]:
        """The blob; its parts are not checked, which is left to whoever knows what they should be."""
        ...


@dataclass(frozen=True, slots=True)
class FileBlob:
    """A file, as a RangeReader."""

    path: Path
    size: int

    @classmethod
    async def open(cls, path: Path) -> FileBlob:
        """The file at ``path``; raises OSError."""
        return cls(path, (await trio.Path(path).stat()).st_size)

    async def read(self, offset: int, length: int) -> bytes:
        """See ``RangeReader``."""

        def work() -> bytes:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(length)

        return await trio.to_thread.run_sync(work)


@asynccontextmanager
async def open_ranges(image: Image, descriptor: Descriptor, *, checked: bool) -> AsyncIterator[RangeReader]:
    """A blob of ``image``; ``checked``: all of it is fetched and checked first, for who has nothing to check parts by."""
    if isinstance(image, Ranged) and not checked:
        async with image.open_ranges(descriptor) as blob:
            yield blob
    else:
        async with image.open_blob(descriptor) as path:
            yield await FileBlob.open(path)
