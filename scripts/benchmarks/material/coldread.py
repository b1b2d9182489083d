"""``python -m scripts.benchmarks.material.coldread CID PEER STORE``: reads what a start of Python reads of a layer, file after file, from a peer.

As a data plane without a profile does: each small file whole when it is looked up, blocks that came are kept. Prints seconds, bytes and blocks.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import trio

from ipfs_store.cids import Cid, parse_cid
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.formats.layer import open_layer
from ipfs_store.nodes.embedded import EmbeddedNode

_BINARIES = (
    "usr/bin/python3.11",
    "libc.so.6",
    "libm.so.6",
    "libz.so.1.2.13",
    "libexpat.so.1.8.10",
    "ld-linux-x86-64.so.2",
    "libcrypto.so.3",
    "libssl.so.3",
)
_PACKAGES = ("encodings", "collections", "re", "json", "importlib", "http", "email", "urllib", "logging")


def _wanted(path: str) -> bool:
    if path.endswith(_BINARIES):
        return True
    parts = path.split("/")
    return path.startswith("usr/lib/python3.11/") and len(parts) == 5 and parts[3] in _PACKAGES and path.endswith(".py")


async def main(cid: str, peer: str, store: str) -> None:
    node = EmbeddedNode(Path(store), peers=[peer])
    kept: dict[Cid, bytes] = {}

    async def get(wanted: Cid) -> bytes:
        if wanted not in kept:
            kept[wanted] = await node.get(wanted)
        return kept[wanted]

    blob = await UnixfsFile.open(get, parse_cid(cid))
    layer = await open_layer(blob)
    before = len(kept)
    start = time.perf_counter()
    files = [entry for entry in layer.toc.entries if entry.type == "reg" and _wanted(entry.path)]
    for entry in files:
        for chunk in entry.chunks:
            await blob.read(chunk.offset, chunk.end - chunk.offset)
    seconds = time.perf_counter() - start
    fetched = list(kept.values())[before:]
    await node.aclose()
    print(json.dumps({"seconds": seconds, "bytes": sum(map(len, fetched)), "blocks": len(fetched), "files": len(files)}))


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
