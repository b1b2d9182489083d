"""The folder ``content`` of the mount: every content of every native layer by its id, for those that no data layer above has yet.

It is the last data-only layer of native mounts. overlayfs looks a file's data up once, at its first open, and keeps what it found; a file
found here would stay here for as long as that overlay is mounted. So `lookup` of a small file fetches it whole, puts it into the store, the
data layer above, and answers ESTALE: the kernel walks the path again and finds it there, and no request of ours is in its way from then on.
Large files get an entry and are read chunk by chunk. So do files that a call looks up which changes metadata: ``chown -R`` fetches nothing.

Inode numbers are functions of the content id, the same in every process that ever serves the mount; a file's handle is its inode number.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator

import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, FUSEError, InodeT, RequestContext

from ipfs_store.errors import IpfsStoreError, StorageFailed
from ipfs_store.formats.chunks import Data
from snapshotter.cache import ContentStore
from snapshotter.dataplane.calls import changes_metadata
from snapshotter.dataplane.keeping import SMALL
from snapshotter.dataplane.layers import NativeLayer
from snapshotter.dataplane.processes import is_dying
from snapshotter.dataplane.reader import ChunkReader
from snapshotter.dataplane.told import Told
from snapshotter.dataplane.waiters import Waiters
from snapshotter.metadata import ContentId

_log = logging.getLogger(__name__)

NAME = b"content"
"""Of the folder below the mount's root."""
FOREVER = 1e9
"""Seconds; a content does not change."""
_LOOKUPS = 2
"""Times that the kernel asks for one opening of a file: it tries again in here, and then from the top, where it finds the file in the store.
Who asks once more, in this process or the next, has not found it (it was evicted meanwhile); ESTALE would be the program's then."""
_BLOCK = 4096
_CONTENT = 1 << 63
ROOT = InodeT(_CONTENT)
"""Of the folder; those in it follow, and files have the next bit set as well."""
_FIRST_FOLDER = _CONTENT + 1
_FILE = _CONTENT | 1 << 62
_ID_BITS = 62


def is_content(inode: int) -> bool:
    """Whether an inode or handle is one of ours."""
    return bool(inode & _CONTENT)


class ContentTree:
    """The operations on what is below ``content``."""

    def __init__(self, reader: ChunkReader, store: ContentStore, threads: trio.CapacityLimiter, waiters: Waiters) -> None:
        self.layers: dict[str, NativeLayer] = {}
        """By key."""
        self._reader = reader
        self._store = store
        self._threads = threads
        self._waiters = waiters
        self.told = Told()
        """Of this process; in its place comes what the one before us left."""

    async def lookup(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """A folder; or a file, or ESTALE when it is in the store above."""
        if parent == ROOT:
            if len(name) != 2 or not _is_hex(name):
                raise FUSEError(errno.ENOENT)
            return _folder(InodeT(_FIRST_FOLDER + int(name, 16)))
        number = parent - _FIRST_FOLDER
        if not 0 <= number < 256 or len(name) != 64 or not _is_hex(name):
            raise FUSEError(errno.ENOENT)
        content = ContentId(bytes.fromhex(name.decode()))
        sources = list(self._sources(content))
        if not sources or content[0] != number:
            raise FUSEError(errno.ENOENT)  # not to be remembered: a layer that has it may be mounted in a moment
        layer, index = sources[0]
        size = layer.index.size[index]
        if size > SMALL or changes_metadata(ctx.pid):
            return _file(content, size)
        times = self.told.times(ctx.pid, content)
        if times > _LOOKUPS:
            return _file(content, size)
        if times > 1:
            raise FUSEError(errno.ESTALE)
        with self._waiters.wait(ctx.pid, gives_way=True) as scope:
            try:
                await self._promote(content, sources)
                layer.counters.opened.add(index)
                self.told.tell(ctx.pid, content)
                self._store.room.keep_young(self._store.path(content))
            except StorageFailed as error:
                self._store.room.say_once(error.message)
                return _file(content, size)
        if scope.cancelled_caught:
            if is_dying(ctx.pid):
                raise FUSEError(errno.EINTR)
            return _file(content, size)  # its reads wait for pages, and heed SIGKILL
        raise FUSEError(errno.ESTALE)

    async def getattr(self, inode: InodeT) -> EntryAttributes:
        """Attributes of what was looked up, by this process or another before it."""
        if inode < _FILE:
            return _folder(inode)
        layer, index = self._by_inode(inode)
        return _file(layer.index.id(index), layer.index.size[index])

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """A handle; pages that the kernel has stay good."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        layer, index = self._by_inode(inode)
        layer.counters.opened.add(index)
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, handle: FileHandleT, offset: int, size: int) -> Data | memoryview:
        """The bytes; EIO where no source has them right."""
        layer, index = self._by_inode(InodeT(handle))
        return await self._read(self._sources(layer.index.id(index)), offset, size)

    async def _promote(self, content: ContentId, sources: list[tuple[NativeLayer, int]]) -> None:
        # Not in a thread: the kernel has just looked there, so that all of the path is in memory.
        if self._store.has(content):
            return
        layer, index = sources[0]
        data = await self._read(iter(sources), 0, layer.index.size[index])
        if not self._store.has(content):  # it is there where it came in one extent
            await trio.to_thread.run_sync(self._store.put, content, [data], limiter=self._threads)

    async def _read(self, sources: Iterator[tuple[NativeLayer, int]], offset: int, size: int) -> Data | memoryview:
        """From the first source that has it right: the same content may lie in several layers."""
        failure: IpfsStoreError | None = None
        for layer, index in sources:
            try:
                data = await self._reader.read(layer, index, offset, size)
            except IpfsStoreError as error:
                _log.error("%s of layer %s (ipfs://%s): %s", layer.index.path(index), layer.digest, layer.cid, error.message)
                failure = failure or error
            else:
                layer.counters.read += len(data)
                return data
        raise FUSEError(errno.EIO) from failure

    def _sources(self, content: ContentId) -> Iterator[tuple[NativeLayer, int]]:
        """Every layer that has the content, and under which number."""
        for layer in self.layers.values():
            index = layer.index.number(content)
            if index is not None:
                yield layer, index

    def _by_inode(self, inode: InodeT) -> tuple[NativeLayer, int]:
        bits = (inode & ((1 << _ID_BITS) - 1)) << 2
        start, end = bits.to_bytes(8, "big"), (bits + 4).to_bytes(9, "big")
        end = end[1:] if not end[0] else b"\xff" * 33
        for layer in self.layers.values():
            index = layer.index.starting(start, end)
            if index is not None:
                return layer, index
        raise FUSEError(errno.ESTALE)


def inode_of(content: ContentId) -> InodeT:
    """62 bits of the id. Ids are salted (`contentid`), so nobody can make two contents meet in one inode."""
    return InodeT(_FILE | int.from_bytes(content[:8], "big") >> 2)


def _is_hex(name: bytes) -> bool:
    return not name.strip(b"0123456789abcdef")


def _folder(inode: InodeT) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = stat.S_IFDIR | 0o555
    entry.st_nlink = 2
    entry.st_size, entry.st_blocks, entry.st_blksize = _BLOCK, _BLOCK // 512, _BLOCK
    entry.entry_timeout = entry.attr_timeout = FOREVER
    return entry


def _file(content: ContentId, size: int) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = inode_of(content)
    entry.st_mode = stat.S_IFREG | 0o444
    entry.st_nlink = 1
    entry.st_size, entry.st_blocks, entry.st_blksize = size, -(-size // _BLOCK) * (_BLOCK // 512), _BLOCK
    entry.entry_timeout = entry.attr_timeout = FOREVER
    return entry
