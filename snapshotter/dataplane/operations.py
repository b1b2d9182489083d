"""What the kernel asks, answered from the trees and the chunk reader (pyfuse3's Operations).

One file system holds every layer: the root has a directory for each, named by its number, and ``content`` with the contents of native
layers (`snapshotter.dataplane.contents`, whose inodes have the highest bit set). An inode's number is the layer's number in the upper 32
bits and the node's index in the tree in the lower ones; a handle holds both as well. So a process that takes over knows what its
predecessor gave out. Trees never change, so the kernel may keep names, attributes, absent names and pages as long as it likes, and nothing
has to be counted: ``forget`` has nothing to do.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, FUSEError, InodeT, RequestContext, XAttrNameT

from ipfs_store.errors import IpfsStoreError
from ipfs_store.formats.chunks import Data
from snapshotter.dataplane.contents import NAME as CONTENT_NAME
from snapshotter.dataplane.contents import ROOT as CONTENT_ROOT
from snapshotter.dataplane.contents import ContentTree, is_content
from snapshotter.dataplane.elsewhere import read_elsewhere
from snapshotter.dataplane.layers import MountedLayer
from snapshotter.dataplane.openers import Openers
from snapshotter.dataplane.reader import ChunkReader
from snapshotter.dataplane.tree import ROOT
from snapshotter.dataplane.waiters import OpenFiles, Waiters

T = TypeVar("T")

_log = logging.getLogger(__name__)

FOREVER = 1e9
"""Seconds; layers do not change."""
BLOCK = 4096
ONE_LINE_EVERY = 30.0
"""Seconds between two log lines about the same file: one failed read comes as up to sixteen requests of the kernel."""
_OPAQUE = frozenset({b"trusted.overlay.opaque", b"user.overlay.opaque"})
_ACL = b"system.posix_acl_"
_SHIFT = 32
_LOW = (1 << _SHIFT) - 1
# A file's handle: a serial number in 12 bits, so that those who opened it can be told apart; the layer in 31; the node in 20 (limits.MAX_ENTRIES).
_HANDLE_NODE = 20
_HANDLE_LAYER = 31
_SERIALS = 1 << 12


class LayerOperations(pyfuse3.Operations):
    """All mounted layers as one read-only file system."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, reader: ChunkReader, contents: ContentTree, waiters: Waiters, *, give_up: float) -> None:
        """``give_up``: seconds that a request waits for a layer that is being opened again."""
        super().__init__()
        self.layers: dict[int, MountedLayer] = {}
        self.coming: dict[int, trio.Event] = {}
        """Layers that are mounted and not open yet, since this process is new; whoever asks for one waits for its event."""
        self._waiters = waiters
        self._give_up = give_up
        self._contents = contents
        self._reader = reader
        self._files = OpenFiles()
        self._serials = itertools.count(1)
        self._logged: dict[tuple[int, int], float] = {}

    # Names and attributes: all in memory, answered without waiting (but for a layer that a new process has not opened yet).

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """The entry called ``name``; a name that a layer does not have is remembered by the kernel too."""
        if is_content(parent_inode):
            return await self._content(lambda: self._contents.lookup(parent_inode, name, ctx), errno.ENOENT, ctx.pid)
        if parent_inode == pyfuse3.ROOT_INODE:
            if name == CONTENT_NAME:
                return await self._contents.getattr(CONTENT_ROOT)
            layer = await self._layer(int(name), ctx.pid) if name.isdigit() else None
            if layer is None or str(layer.number).encode() != name:
                raise FUSEError(errno.ENOENT)  # not to be remembered: it may be mounted in a moment
            return _attributes(layer, ROOT)
        layer, parent = await self._node(parent_inode, ctx.pid)
        node = layer.tree.lookup(parent, name)
        if node:
            return _attributes(layer, node)
        absent = EntryAttributes()
        absent.st_ino = InodeT(0)
        absent.entry_timeout = FOREVER
        return absent

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Attributes of any inode."""
        if is_content(inode):
            return await self._content(lambda: self._contents.getattr(inode), errno.ESTALE, ctx.pid)
        return self._root() if inode == pyfuse3.ROOT_INODE else _attributes(*await self._node(inode, ctx.pid))

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """A symbolic link's target."""
        layer, node = await self._node(inode, ctx.pid)
        return FileNameT(layer.tree.link(node))

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """An extended attribute; whether a directory is opaque is one as well, for overlayfs."""
        if name.startswith(_ACL):
            raise FUSEError(errno.EOPNOTSUPP)  # ls then stops asking, for every file after
        if inode != pyfuse3.ROOT_INODE and not is_content(inode):
            layer, node = await self._node(inode, ctx.pid)
            value = layer.tree.xattrs.get(node, {}).get(name)
            if value is not None:
                return value
            if name in _OPAQUE and node in layer.tree.opaque:
                return b"y"
        raise FUSEError(errno.ENODATA)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[XAttrNameT]:
        """The attributes that the image gave it. overlayfs asks for its own by name, and would copy them up if they were listed."""
        if inode == pyfuse3.ROOT_INODE or is_content(inode):
            return []
        layer, node = await self._node(inode, ctx.pid)
        return [XAttrNameT(name) for name in layer.tree.xattrs.get(node, ())]

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """The size of all layers; nothing is free."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK
        data.f_blocks = sum(layer.content for layer in self.layers.values()) // BLOCK
        data.f_files = sum(layer.tree.nodes for layer in self.layers.values())
        data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    # Directories: the handle is the inode, and a position is the number of the entry, since neither changes.

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """A handle, which is the inode's number."""
        if inode != pyfuse3.ROOT_INODE and not is_content(inode):
            await self._node(inode, ctx.pid)
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from ``start_id``, in the order of names, with their attributes."""
        if is_content(fh):
            return  # nobody lists what it holds; overlayfs asks by name
        entries = self._list_root(start_id) if fh == pyfuse3.ROOT_INODE else self._list(*await self._node(InodeT(fh)), start_id)
        for number, name, attributes in entries:
            if not pyfuse3.readdir_reply(token, FileNameT(name), attributes, number + 1):
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        """Nothing to let go of."""

    def _list(self, layer: MountedLayer, folder: int, start: int) -> Iterator[tuple[int, bytes, EntryAttributes]]:
        if start < 1:
            yield 0, b".", _attributes(layer, folder)
        if start < 2:
            yield 1, b"..", self._root() if folder == ROOT else _attributes(layer, layer.tree.parent[folder])
        for number, name, node in layer.tree.entries(folder, max(start - 2, 0)):
            yield number + 2, name, _attributes(layer, node)

    def _list_root(self, start: int) -> Iterator[tuple[int, bytes, EntryAttributes]]:
        # By layer number, so that a layer that comes or goes moves no other.
        for number in sorted(self.layers):
            if number >= start:
                yield number, str(number).encode(), _attributes(self.layers[number], ROOT)

    # Files.

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """A handle; pages that the kernel has stay good."""
        if is_content(inode):
            opened = await self._content(lambda: self._contents.open(inode, flags, ctx), errno.ESTALE, ctx.pid)
            self._files.opened(inode, ctx.pid)
            return opened
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        layer, node = await self._node(inode, ctx.pid)
        layer.counters.opened.add(node)
        handle = next(self._serials) % _SERIALS << _HANDLE_NODE + _HANDLE_LAYER | layer.number << _HANDLE_NODE | node
        self._files.opened(handle, ctx.pid)
        return FileInfo(fh=FileHandleT(handle), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """The bytes, or EIO and one line in the log."""
        data: Data | memoryview = b""
        with self._files.reading(fh) as scope:
            if is_content(fh):
                data = await self._content(lambda: self._contents.read(fh, off, size), errno.ESTALE)
            else:
                data = await self._read(fh, off, size)
        if scope.cancelled_caught:
            raise FUSEError(errno.EINTR)
        return cast("bytes", data)  # pyfuse3 takes whatever has a buffer

    async def _read(self, fh: FileHandleT, off: int, size: int) -> Data | memoryview:
        number, index = fh >> _HANDLE_NODE & (1 << _HANDLE_LAYER) - 1, fh & (1 << _HANDLE_NODE) - 1
        layer, node = await self._node(InodeT(number << _SHIFT | index))
        try:
            data = await self._reader.read(layer, node, off, size)
        except IpfsStoreError as error:
            other = await read_elsewhere(self._reader, list(self.layers.values()), layer, node, off, size)
            if other is None:
                self._log_once(layer, node, error.message)
                raise FUSEError(errno.EIO) from error
            data = other
        except Exception as error:  # a defect must cost one read, not the mounts of the whole machine
            _log.exception("reading %s of layer %s", layer.tree.path(node), layer.digest)
            raise FUSEError(errno.EIO) from error
        layer.counters.read += len(data)
        return data

    async def flush(self, fh: FileHandleT) -> None:
        """A descriptor was closed."""
        self._files.flushed(fh)

    async def release(self, fh: FileHandleT) -> None:
        """The last descriptor was closed."""
        self._files.released(fh)

    def remember_openers(self, record: Openers, *, new: bool) -> None:
        """See `OpenFiles.recorded`."""
        self._files.recorded(record, new=new)

    async def watch_killed(self) -> None:
        """Run for ever: end the reads of processes that got SIGKILL and cannot die while they wait for us."""
        await self._files.watch()

    def _log_once(self, layer: MountedLayer, node: int, reason: str) -> None:
        now = trio.current_time()
        about = layer.generation, node
        if now - self._logged.get(about, -ONE_LINE_EVERY) < ONE_LINE_EVERY:
            return
        self._logged = {key: when for key, when in self._logged.items() if now - when < ONE_LINE_EVERY}
        self._logged[about] = now
        _log.error("EIO: %s of layer %s (ipfs://%s): %s", layer.tree.path(node), layer.digest or layer.number, layer.cid, reason)

    # Inodes.

    async def _node(self, inode: InodeT, thread: int = 0) -> tuple[MountedLayer, int]:
        layer = self.layers.get(inode >> _SHIFT)
        if layer is None:
            layer = await self._layer(inode >> _SHIFT, thread)
        node = inode & _LOW
        if layer is None or not 0 < node <= layer.tree.nodes:
            raise FUSEError(errno.ESTALE)
        return layer, node

    async def _layer(self, number: int, thread: int) -> MountedLayer | None:
        """The layer; waits for one that was mounted before this process was, and is being opened."""
        coming = self.coming.get(number)
        if coming is not None:
            await self._settled(coming, thread)
        return self.layers.get(number)

    async def _content(self, ask: Callable[[], Awaitable[T]], absent: int, thread: int = 0) -> T:
        """The answer of the content tree; ``absent``, that no layer has the content, counts only once every layer is there."""
        while True:
            try:
                return await ask()
            except FUSEError as error:
                if error.errno != absent or not self.coming:
                    raise
            await self._settled(next(iter(self.coming.values())), thread)

    async def _settled(self, coming: trio.Event, thread: int) -> None:
        with self._waiters.wait(thread) as scope, trio.move_on_after(self._give_up) as given:
            await coming.wait()
        if scope.cancelled_caught:
            raise FUSEError(errno.EINTR)
        if given.cancelled_caught:
            _log.error("a layer that is mounted could not be opened within %g s; it is waited for no longer", self._give_up)
            raise FUSEError(errno.EIO)

    def _root(self) -> EntryAttributes:
        root = EntryAttributes()
        root.st_ino = pyfuse3.ROOT_INODE
        # Only root goes in: overlayfs reads the layers with its mounter's rights, and nobody else has business here.
        root.st_mode = stat.S_IFDIR | 0o700
        root.st_nlink = 2 + len(self.layers)
        root.st_blksize = BLOCK
        root.attr_timeout = 0
        return root


def _attributes(layer: MountedLayer, node: int) -> EntryAttributes:
    tree = layer.tree
    entry = EntryAttributes()
    mode = tree.mode[node]
    entry.st_ino = InodeT(layer.number << _SHIFT | node)
    entry.generation = layer.identity
    entry.entry_timeout = entry.attr_timeout = FOREVER
    entry.st_mode = mode
    entry.st_nlink = tree.nlink[node]
    entry.st_uid = tree.uid[node]
    entry.st_gid = tree.gid[node]
    entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = tree.mtime[node] * 1_000_000_000 + tree.mtime_ns[node]
    entry.st_blksize = BLOCK
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFREG:
        entry.st_size = size = tree.size[node]
        entry.st_blocks = -(-size // BLOCK) * (BLOCK // 512)
    elif kind == stat.S_IFLNK:
        entry.st_size = tree.size[node]
    elif kind == stat.S_IFDIR:
        entry.st_size, entry.st_blocks = BLOCK, BLOCK // 512
    else:
        entry.st_rdev = tree.first[node]
    return entry
