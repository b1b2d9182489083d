"""Layers that are read before all of them was checked, or is there: hashing and fetching take their time beside the conversion, not before it.

Whoever reads one early keeps what he made of it to himself until ``checked`` has returned.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import trio

from ipfs_store.errors import BlobMismatch, IpfsStoreError
from ipfs_store.formats.blob import RangeReader
from ipfs_store.images.model import Image, Incoming
from ipfs_store.images.sources.ranges import FileBlob
from ipfs_store.images.sources.scratch import Scratch, check_file, storage_failed
from ipfs_store.oci import Descriptor


@runtime_checkable
class Early(Protocol):
    """A source that can give a blob before it was checked."""

    def open_incoming(self, descriptor: Descriptor, nursery: trio.Nursery) -> AbstractAsyncContextManager[Incoming]:
        """The blob; what is done beside its reader is done in ``nursery``, and over when the context ends. Raises as ``open_blob`` does."""
        ...


@asynccontextmanager
async def open_incoming(image: Image, descriptor: Descriptor, nursery: trio.Nursery) -> AsyncIterator[Incoming]:
    """A layer of ``image``, as early as the source can give it; raises as ``open_blob`` does."""
    if isinstance(image, Early):
        async with image.open_incoming(descriptor, nursery) as incoming:
            yield incoming
    else:
        async with image.open_blob(descriptor) as path:
            yield Whole(path, descriptor.size)


@dataclass(frozen=True, slots=True)
class Whole:
    """See ``images.model.Incoming``: a blob that was checked."""

    path: Path
    size: int

    @property
    def ranges(self) -> RangeReader:
        """See ``Incoming``."""
        return FileBlob(self.path, self.size)

    def open(self) -> io.RawIOBase:
        """See ``Readable``."""
        return self.path.open("rb", buffering=0)

    async def checked(self) -> Path:
        """See ``Incoming``."""
        return self.path


class _Task:
    """Work of a thread that goes on beside a reader; what went wrong is told who waits for it."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._error: Exception | None = None

    async def run(self, work: Callable[[], None]) -> None:
        try:
            with self._scope:
                await trio.to_thread.run_sync(work)
        except (IpfsStoreError, OSError) as error:
            self._error = error
        finally:
            self._over.set()

    async def wait(self) -> None:
        await self._over.wait()
        if self._error is not None:
            raise self._error

    async def end(self) -> None:
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._over.wait()


@asynccontextmanager
async def checking(path: Path, descriptor: Descriptor, where: str, nursery: trio.Nursery) -> AsyncIterator[Incoming]:
    """The file at ``path``, hashed while it is read; ``where`` begins the message of a BlobMismatch."""
    task = _Task()
    nursery.start_soon(task.run, lambda: check_file(path, descriptor, where))
    try:
        yield _Checking(path, descriptor.size, task)
    finally:
        await task.end()


@dataclass(frozen=True, slots=True)
class _Checking(Whole):
    task: _Task

    async def checked(self) -> Path:
        await self.task.wait()
        return self.path


@asynccontextmanager
async def arriving(
    pieces: Iterable[bytes], ranges: RangeReader, descriptor: Descriptor, where: str, folder: Path, nursery: trio.Nursery
) -> AsyncIterator[Incoming]:
    """A blob that comes in ``pieces`` into a file without a name in ``folder``, and can be read from there as far as it has come.

    ``ranges``: parts of it by themselves, since its end is looked at first. Raises StorageFailed.
    """
    target = await trio.to_thread.run_sync(Scratch, folder)
    growing = _Growing(target, ranges, descriptor, where, folder)
    nursery.start_soon(growing.task.run, lambda: growing.fill(pieces))
    try:
        yield growing
    finally:
        await growing.task.end()
        target.close()


@asynccontextmanager
async def arrived(pieces: Iterable[bytes], descriptor: Descriptor, where: str, folder: Path) -> AsyncIterator[Path]:
    """The same once it is there; raises BlobMismatch, StorageFailed, and what ``pieces`` raise."""
    target = await trio.to_thread.run_sync(Scratch, folder)
    try:
        growing = _Growing(target, FileBlob(target.path, descriptor.size), descriptor, where, folder)
        await trio.to_thread.run_sync(growing.fill, pieces)
        yield target.path
    finally:
        target.close()


class _Growing:
    def __init__(self, target: Scratch, ranges: RangeReader, descriptor: Descriptor, where: str, folder: Path) -> None:
        self.size = descriptor.size
        self.ranges = ranges
        self.task = _Task()
        self._handle = target.file.fileno()
        self._path = target.path
        self._descriptor = descriptor
        self._where = where
        self._folder = folder
        self._there = 0
        self._ended = False
        self._more = threading.Condition()

    def open(self) -> io.RawIOBase:
        return _Reader(self)

    async def checked(self) -> Path:
        await self.task.wait()
        return self._path

    def fill(self, pieces: Iterable[bytes]) -> None:
        """Synchronous, for a thread; raises BlobMismatch, StorageFailed, and what ``pieces`` raise."""
        hasher = hashlib.sha256()
        try:
            for piece in pieces:
                trio.from_thread.check_cancelled()
                hasher.update(piece)
                if self._there + len(piece) > self.size:
                    raise BlobMismatch(
                        f"{self._where}: blob {self._descriptor.digest} is longer than its descriptor says, {self.size} bytes"
                    )
                self._write(piece)
            if (self._there, hasher.hexdigest()) != (self.size, self._descriptor.digest.hex):
                raise BlobMismatch(
                    f"{self._where}: blob {self._descriptor.digest} has {self._there} bytes of digest sha256:{hasher.hexdigest()},"
                    f" its descriptor says {self.size} bytes"
                )
        finally:
            with self._more:
                self._ended = True
                self._more.notify_all()

    def read_into(self, buffer: memoryview, at: int) -> int:
        """Some bytes from ``at``, none at the end; waits for them. Raises BlobMismatch where they will never come."""
        with self._more:
            while self._there <= at < self.size and not self._ended:
                self._more.wait()
            count = min(len(buffer), self._there - at)
            if count <= 0:
                if at < self.size:
                    # Why, the task says: this ends whoever reads.
                    raise BlobMismatch(f"{self._where}: blob {self._descriptor.digest} did not arrive as a whole")
                return 0
        return os.preadv(self._handle, [buffer[:count]], at)

    def _write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            try:
                count = os.write(self._handle, view)
            except OSError as error:
                raise storage_failed(error, self._folder) from error
            view = view[count:]
            with self._more:
                self._there += count
                self._more.notify_all()


class _Reader(io.RawIOBase):
    def __init__(self, growing: _Growing) -> None:
        self._growing = growing
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview | bytearray, /) -> int:  # type: ignore[override]
        count = self._growing.read_into(memoryview(buffer), self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._growing.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at
