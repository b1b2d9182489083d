"""``python -m tests.dataplane.served FOLDER ARGUMENTS``: the real data plane on layers and faults that lie in FOLDER.

FOLDER/CID.blob, FOLDER/CID.toc   a layer (msgpack); to be mounted natively, the blob has a TOC of its own
FOLDER/faults, FOLDER/hold        what the next reads of a blob do (`tests.dataplane.faults`)
FOLDER/leaf                       every blob is one leaf, if this is there
FOLDER/reads                      a line for each read that began: CID offset length
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ipfs_store.errors import BlockNotFound, NodeUnavailable
from ipfs_store.formats.footer import TocLocation
from ipfs_store.formats.layer import load_toc
from ipfs_store.formats.toc import Toc
from snapshotter.dataplane.__main__ import parser, run
from snapshotter.dataplane.build import build_tree
from snapshotter.dataplane.layers import Counters, Opened
from snapshotter.dataplane.server import LayerSource
from tests.dataplane.faults import Faults
from tests.dataplane.synthetic import decode


@dataclass
class FaultyBlob:
    """A RangeReader over a file that misbehaves on command."""

    path: Path
    faults: Faults
    counters: Counters

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    async def extent(self, offset: int, length: int) -> tuple[int, int]:
        whole = (self.faults.folder / "leaf").exists()
        return (0, self.size) if whole else (offset, offset + length)

    def following(self, offset: int, length: int) -> tuple[int, int] | None:
        return None

    async def local_extent(self, offset: int, length: int) -> tuple[int, int]:
        return offset, offset

    def unverified(self, offset: int, length: int) -> list[bytes] | None:
        local = self.path.with_suffix(".local")
        if not local.exists():
            return None
        with local.open("rb") as file:
            return [os.pread(file.fileno(), length, offset)]

    async def read(self, offset: int, length: int) -> bytes:
        fault = self.faults.next()  # before anybody is told of the read, and changes what the next one does
        with (self.faults.folder / "reads").open("a") as log:
            log.write(f"{self.path.stem} {offset} {length}\n")
        if fault == "away":
            raise NodeUnavailable("the node of the test is away")
        if fault == "missing":
            raise BlockNotFound("nobody has bafytest")
        if fault == "hold":
            await self.faults.hold()
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), length, offset)
        self.counters.fetched += length
        return bytes([data[0], data[1], *(byte ^ 0xFF for byte in data[2:])]) if fault == "wrong" else data


@dataclass
class FolderSource:
    folder: Path

    async def open(self, cid: str, toc_digest: str, counters: Counters, *, toc: str = "") -> Opened:
        path = self.folder / f"{cid}.toc"
        if not path.exists():
            raise BlockNotFound(f"nobody has {cid}")
        tree = build_tree(msgspec.msgpack.decode(path.read_bytes(), type=Toc))
        return Opened(tree, self.blob(cid, counters), decode)

    async def load_toc(self, cid: str, toc_digest: str, counters: Counters, *, toc: str = "") -> tuple[TocLocation, bytes]:
        if not (self.folder / f"{cid}.blob").exists():
            raise BlockNotFound(f"nobody has {cid}")
        return await load_toc(self.blob(cid, counters), toc_digest=toc_digest)

    def blob(self, cid: str, counters: Counters) -> FaultyBlob:
        return FaultyBlob(self.folder / f"{cid}.blob", Faults(self.folder), counters)


@asynccontextmanager
async def open_folder(folder: Path) -> AsyncIterator[LayerSource]:
    yield FolderSource(folder)


if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    sys.exit(run(parser().parse_args(arguments), lambda: open_folder(Path(folder))))
