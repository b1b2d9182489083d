"""What a layer becomes in IPFS, without a node: its blocks, told apart by what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trio

from ipfs_store.cids import RAW, Cid, codec_of
from ipfs_store.cids.cid import identity_cid
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.chunker import BY_MEMBER, Chunker
from ipfs_store.formats.detached import detach
from ipfs_store.formats.layer import Layer
from ipfs_store.formats.options import WriteOptions
from ipfs_store.formats.toc import Entry
from ipfs_store.formats.writer import write_layer


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


@dataclass(frozen=True)
class Blob:
    """A layer as eStargz, whole in memory."""

    data: bytes
    layer: Layer
    toc_object: bytes

    @classmethod
    def of(cls, tar: Path, folder: Path) -> Blob:
        """``tar``, converted in ``folder``."""
        path = folder / "blob"
        write_layer(tar, path, WriteOptions())
        data = path.read_bytes()
        path.unlink()

        async def read() -> Blob:
            toc = await detach(_Bytes(data))
            return cls(data, toc.open(), toc.encode())

        return trio.run(read)

    @property
    def payload(self) -> bytes:
        """All but the table of contents."""
        return self.data[: self.layer.toc_offset]

    def files(self) -> dict[str, Entry]:
        """Regular files that are not empty."""
        return {entry.path: entry for entry in self.layer.toc.entries if entry.type == "reg" and entry.size}

    def blocks(self, chunker: Chunker = BY_MEMBER) -> Blocks:
        """Its blocks, as a push would make them."""
        builder = FileBuilder(inline=chunker.inline)
        payload: dict[Cid, int] = {}
        toc: dict[Cid, int] = {}
        inner: dict[Cid, int] = {}
        at = 0
        for leaf in chunker.leaves(memoryview(self.data)):
            made = list(builder.add(bytes(leaf)))
            # A leaf inside of its CID is as new as one that is a block.
            for cid, block in made or [(identity_cid(RAW, bytes(leaf)), bytes(leaf))]:
                kind = inner if codec_of(cid) != RAW else payload if at < self.layer.toc_offset else toc
                kind[cid] = len(block)
            at += len(leaf)
        inner.update((cid, len(block)) for cid, block in builder.finish())
        return Blocks(payload, toc, inner)


def compressed_size(entry: Entry) -> int:
    """Bytes of a file's gzip members."""
    return sum(chunk.end - chunk.offset for chunk in entry.chunks)


def changed_content(old: Blob, new: Blob) -> int:
    """Compressed bytes of the files of ``new`` whose contents ``old`` has nowhere, each once."""
    known = {entry.digest for entry in old.files().values()}
    return sum({entry.digest: compressed_size(entry) for entry in new.files().values() if entry.digest not in known}.values())


def replaced(old: Blob, new: Blob) -> int:
    """Compressed bytes of the files of ``new`` that ``old`` does not have with contents, owner, mode and time: what a layer of the difference holds."""
    before = {path: _identity(entry) for path, entry in old.files().items()}
    return sum(compressed_size(entry) for path, entry in new.files().items() if before.get(path) != _identity(entry))


def _identity(entry: Entry) -> tuple[object, ...]:
    return entry.digest, entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns, entry.xattrs


@dataclass(frozen=True)
class Blocks:
    """Sizes by CID."""

    payload: dict[Cid, int]
    toc: dict[Cid, int]
    inner: dict[Cid, int]

    def new_bytes(self, old: Blocks) -> int:
        """Of the payload's leaves that ``old`` has not."""
        return sum(size for cid, size in self.payload.items() if cid not in old.payload)

    def new_leaves(self, old: Blocks) -> int:
        """How many those are."""
        return len(self.payload.keys() - old.payload.keys())
