"""UnixFS v1: what a dag-pb node means as a file (specs.ipfs.tech/unixfs, "Data"; file nodes only).

A file is a raw block, or a dag-pb node whose data holds inline bytes and the sizes of what each link contributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ipfs_store.cids import DAG_PB, RAW, Cid, codec_of, format_cid
from ipfs_store.dag import dagpb, varint
from ipfs_store.errors import InvalidDag

_RAW, _DIRECTORY, _FILE, _SYMLINK, _HAMT = 0, 1, 2, 4, 5
_TYPE_NAMES = {1: "a directory", 3: "metadata", 4: "a symbolic link", 5: "a sharded directory"}


@dataclass(frozen=True, slots=True)
class Child:
    """A part of a file that lies in another block."""

    cid: Cid
    size: int
    """Bytes of the file below it."""


@dataclass(frozen=True, slots=True)
class FileNode:
    """A block of a file: ``data`` comes first, the children follow."""

    data: bytes
    children: tuple[Child, ...]
    size: int
    ends: tuple[int, ...] = ()
    """Where in the block's part of the file each child ends."""


def encode_file_node(children: Sequence[tuple[Cid, int, int]]) -> bytes:
    """An interior node as Kubo writes it; each child is (CID, bytes of the file below it, cumulative size of its DAG)."""
    total = sum(size for _, size, _ in children)
    data = b"\x08\x02\x18" + varint.encode(total) + b"".join(b"\x20" + varint.encode(size) for _, size, _ in children)
    return dagpb.encode_node([dagpb.Link(cid, "", dag_size) for cid, _, dag_size in children], data)


def decode_file_node(cid: Cid, block: bytes) -> FileNode:
    """What ``block`` contributes to its file; raises InvalidDag, naming the CID."""
    codec = codec_of(cid)
    if codec == RAW:
        return FileNode(block, (), len(block))
    if codec != DAG_PB:
        raise InvalidDag(f"{format_cid(cid)} is a block of codec 0x{codec:x}, not part of a UnixFS file")
    try:
        return _decode(block)
    except InvalidDag as error:
        raise InvalidDag(f"{format_cid(cid)} is no block of a UnixFS file: {error}") from error


def _decode(block: bytes) -> FileNode:
    node = dagpb.decode_node(block)
    if node.data is None:
        raise InvalidDag("a dag-pb node without UnixFS data")
    kind: int | None = None
    inline = b""
    file_size: int | None = None
    sizes: list[int] = []
    for number, value in dagpb.fields(node.data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            inline = value
        elif number == 3 and isinstance(value, int):
            file_size = value
        elif number == 4:
            sizes += _packed(value)
        # Others (hash type, fanout, mode, mtime) say nothing of a file's bytes.
    if kind not in (_RAW, _FILE):
        raise InvalidDag(f"it is {_TYPE_NAMES.get(-1 if kind is None else kind, 'of no known UnixFS type')}, not a file")
    if len(sizes) != len(node.links):
        raise InvalidDag(f"{len(node.links)} links and {len(sizes)} block sizes")
    size = len(inline) + sum(sizes)
    if file_size is not None and file_size != size:
        raise InvalidDag(f"it says it has {file_size} bytes, and its parts add up to {size}")
    children = tuple(Child(link.cid, part) for link, part in zip(node.links, sizes, strict=True))
    return FileNode(inline, children, size, tuple(accumulate(sizes, initial=len(inline)))[1:])


def _packed(value: int | bytes) -> list[int]:
    if isinstance(value, int):
        return [value]
    sizes, at = [], 0
    while at < len(value):
        size, at = varint.decode(value, at)
        sizes.append(size)
    return sizes
