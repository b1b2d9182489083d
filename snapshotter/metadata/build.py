"""From a table of contents to the tree of a metadata image and the contents that it refers to.

What overlayfs needs differs from what a layer says (image-spec, layer.md, "Whiteouts"; kernel, filesystems/overlayfs.rst):

- ``.wh.NAME`` becomes a character device 0/0 called NAME; where the layer has a NAME of its own, that one counts (a directory is opaque);
- ``.wh..wh..opq`` makes its directory opaque; no other name that begins with ``.wh..wh.`` is shown, nor anything below one;
- a regular file with contents has no data here: ``trusted.overlay.metacopy`` and ``trusted.overlay.redirect`` lead to them in a data layer;
- attributes of overlayfs itself that a layer brings along are dropped: they would redirect files or make directories opaque.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

from ipfs_store.erofs import Inode
from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.toc import Chunk, Entry, Toc
from snapshotter.metadata.contentid import HOLE, Scope, content_id, is_hole
from snapshotter.metadata.index import NO_DIGEST, Contents

# A stream is decompressed whole, in memory; usual ones hold 256 KiB to 4 MiB. Beyond this a layer is better pulled in the ordinary way.
MAX_STREAM = 128 << 20
_LINK_MAX = 4095
_NAME_MAX = 255
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_HIDDEN = ".wh..wh."
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")
OPAQUE = {b"trusted.overlay.opaque": b"y"}
_NO_XATTRS: Mapping[bytes, bytes] = {}
_TYPES = {
    "dir": stat.S_IFDIR,
    "reg": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


@dataclass(frozen=True, slots=True)
class Metadata:
    """A layer without its data."""

    root: Inode
    contents: Contents


def build_metadata(toc: Toc, *, scope: Scope, layer: str) -> Metadata:
    """The metadata of a layer; raises InvalidLayer for what cannot be mounted. CPU work: 0.2 s for 30,000 entries.

    ``layer``: what names the layer where files cannot be named by their digests (see `content_id`).
    """
    try:
        return _Builder(scope, layer).build(toc)
    except (OverflowError, UnicodeEncodeError) as error:
        raise InvalidLayer(f"the TOC {toc.digest} has a value that no file can have: {error}") from error


class _Builder:
    """The tree, and what is needed only while it grows."""

    def __init__(self, scope: Scope, layer: str) -> None:
        self.scope = scope
        self.layer = layer
        self.contents = Contents()
        self.nodes: dict[str, Inode] = {}
        self.links: dict[str, str] = {}
        self.whiteouts: list[tuple[str, str, Entry]] = []
        self.opaque: set[str] = set()
        self.hidden: set[str] = set()

    def build(self, toc: Toc) -> Metadata:
        for entry in toc.entries:
            self._take(entry)
        root = self.nodes.get("")
        if root is None:
            raise InvalidLayer("the TOC has no root")
        for path in self.links:
            self._link(path)
        for folder, name, entry in self.whiteouts:
            self._whiteout(folder, name, entry)
        for path in self.opaque:
            node = self.nodes.get(path)
            if node is not None and node.children is not None:
                node.xattrs = {**node.xattrs, **OPAQUE}
        return Metadata(root, self.contents)

    def _take(self, entry: Entry) -> None:
        folder, _, name = entry.path.rpartition("/")
        if self.hidden and folder in self.hidden:
            self.hidden.add(entry.path)
        elif name.startswith(_WHITEOUT):
            if name == _OPAQUE:
                self.opaque.add(folder)
            elif name.startswith(_HIDDEN) or name == _WHITEOUT:
                self.hidden.add(entry.path)
            else:
                self.whiteouts.append((folder, name.removeprefix(_WHITEOUT), entry))
                self.hidden.add(entry.path)
        elif entry.type == "hardlink":
            self.links[entry.path] = entry.link
        else:
            node = self._node(entry)
            if entry.path:
                self._name(folder, name, node, entry.path)
            elif entry.type != "dir":
                raise InvalidLayer("the root of the TOC is no directory")
            self.nodes[entry.path] = node

    def _node(self, entry: Entry) -> Inode:
        node = Inode(_TYPES[entry.type] | entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns, entry.size, xattrs=_NO_XATTRS)
        if entry.xattrs:
            node.xattrs = {
                name.encode("utf-8", "surrogateescape"): value
                for name, value in entry.xattrs.items()
                if not name.startswith(_OVERLAY_XATTRS)
            }
        match entry.type:
            case "reg":
                if entry.size:
                    node.redirect = self._content(entry)
            case "dir":
                node.children = {}
            case "symlink":
                node.link = entry.link.encode("utf-8", "surrogateescape")
                node.mode |= 0o777  # as on every Linux file system, whatever the archive says
                if not 0 < len(node.link) <= _LINK_MAX or b"\0" in node.link:
                    raise InvalidLayer(f"{entry.path!r} is a symbolic link to a target of {len(node.link)} bytes, which no link can have")
            case "char" | "block":
                if not (0 <= entry.dev_major < 1 << 12 and 0 <= entry.dev_minor < 1 << 20):
                    raise InvalidLayer(f"{entry.path!r} is a device {entry.dev_major}:{entry.dev_minor}, which does not exist on Linux")
                node.rdev = entry.dev_major, entry.dev_minor
        return node

    def _content(self, entry: Entry) -> bytes:
        """Note the file's contents; where they are in a data layer, as a redirect says it."""
        content = content_id(self.scope, self.layer, entry)
        contents = self.contents
        if content not in contents.first:
            first = len(contents.chunk_size)
            at = 0
            for chunk in entry.chunks:
                if chunk.file_offset != at or chunk.size <= 0:
                    raise InvalidLayer(f"{entry.path!r} has a gap in its chunks at {at}")
                at += chunk.size
                self._chunk(entry, chunk)
            if at != entry.size:
                raise InvalidLayer(f"{entry.path!r} has {entry.size} bytes, and chunks for {at}")
            contents.first[content] = entry.size, first, len(entry.chunks), entry.path.encode("utf-8", "surrogateescape")
        name = content.hex()
        return f"/{name[:2]}/{name}".encode()

    def _chunk(self, entry: Entry, chunk: Chunk) -> None:
        length, inner = chunk.end - chunk.offset, chunk.inner_offset
        if chunk.digest and chunk.offset >= 0 and 0 < length <= MAX_STREAM and 0 <= inner <= MAX_STREAM - chunk.size:
            digest = bytes.fromhex(chunk.digest[7:])
        else:
            digest = self._odd_chunk(entry, chunk)
        contents = self.contents
        contents.chunk_file_offset.append(chunk.file_offset)
        contents.chunk_size.append(chunk.size)
        contents.stream_offset.append(chunk.offset)
        contents.stream_length.append(length)
        contents.chunk_inner.append(inner)
        contents.digests += digest

    def _odd_chunk(self, entry: Entry, chunk: Chunk) -> bytes:
        """What stands for the digest of a hole or of a chunk that has none; raises InvalidLayer for one that cannot be read."""
        if is_hole(chunk):
            return HOLE
        if not (0 <= chunk.offset < chunk.end and chunk.inner_offset >= 0):
            raise InvalidLayer(f"{entry.path!r} has a chunk at {chunk.offset} to {chunk.end} of the blob, which is nowhere")
        if chunk.end - chunk.offset > MAX_STREAM or chunk.inner_offset + chunk.size > MAX_STREAM:
            raise InvalidLayer(
                f"{entry.path!r} lies in a compressed stream of more than {MAX_STREAM >> 20} MiB, which is too large to be read lazily",
                hint="convert the image with smaller chunks (ipfs-push does)",
            )
        return NO_DIGEST

    def _name(self, folder: str, name: str, node: Inode, path: str) -> None:
        parent = self.nodes.get(folder)
        if parent is None or parent.children is None:
            raise InvalidLayer(f"{path!r} is in the TOC, but its directory is not")
        raw = name.encode("utf-8", "surrogateescape")
        if not 0 < len(raw) <= _NAME_MAX or b"\0" in raw or raw in (b".", b".."):
            raise InvalidLayer(f"{path[:300]!r}: no file can have this name")
        if raw in parent.children:
            raise InvalidLayer(f"{path!r} is in the TOC twice")
        parent.children[raw] = node

    def _link(self, path: str) -> None:
        target = self.links[path]
        passed = {path}
        while target in self.links and target not in passed:
            passed.add(target)
            target = self.links[target]
        node = self.nodes.get(target)
        if node is None or node.children is not None:
            raise InvalidLayer(f"{path!r} is a hard link to {self.links[path]!r}, which is no file of this layer")
        folder, _, name = path.rpartition("/")
        self._name(folder, name, node, path)

    def _whiteout(self, folder: str, name: str, entry: Entry) -> None:
        parent = self.nodes.get(folder)
        own = parent.children.get(name.encode("utf-8", "surrogateescape")) if parent is not None and parent.children is not None else None
        if own is None:
            bare = Inode(stat.S_IFCHR, entry.uid, entry.gid, entry.mtime, entry.mtime_ns)
            self._name(folder, name, bare, entry.path)
        elif own.children is not None:
            self.opaque.add(f"{folder}/{name}" if folder else name)
