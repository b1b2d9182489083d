"""New bytes of a second image, beside what changed and what Kubo's chunkers make of the same blobs. Tables of contents are counted apart.

The images are Debian root file systems, each a layer of its own (``material/debian.py``); they are made at the first run, which takes 15 minutes and root.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

from isal import igzip

from ipfs_store.formats.detached import decode_detached
from scripts.benchmarks.material.debian import AFTER, APPLICATIONS, BEFORE, CACHE, CHAIN, made
from scripts.benchmarks.material.stored import Blob, changed_content, replaced
from scripts.benchmarks.rows import Row

_IPFS = Path(os.environ.get("IPFS_STORE_TEST_BIN", "/var/cache/ipfs-store/go")) / "ipfs"


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        before = Blob.of(made(BEFORE), folder)
        rows = _pair("upgrade", made(BEFORE), before, made(AFTER), Blob.of(made(AFTER), folder), folder)
        one, other = (Blob.of(made(tree), folder) for tree in APPLICATIONS)
        rows += _pair("applications", made(APPLICATIONS[0]), one, made(APPLICATIONS[1]), other, folder)
        rows += _small_change(made(BEFORE), before, folder)
        rows += _chain(folder)
        rows += _overhead(before)
    return rows


def _pair(case: str, old_tar: Path, old: Blob, new_tar: Path, new: Blob, folder: Path) -> list[Row]:
    ours = new.blocks().new_bytes(old.blocks())
    kubo = Kubo(folder / "kubo")
    fixed, rabin = (kubo.new_bytes(old.payload, new.payload, chunker) for chunker in ("size-262144", "rabin"))
    plain = kubo.new_bytes(_tar_gz(old_tar), _tar_gz(new_tar), "size-262144")
    return [
        Row(case, "new bytes : replaced files", ours, replaced(old, new), 1.5),
        Row(case, "new bytes : files of new contents", ours, changed_content(old, new), 1.5),
        Row(case, "new bytes : fixed chunker", ours, fixed, 1 / 3),
        Row(case, "new bytes : rabin chunker", ours, rabin),
        Row(case, "new bytes : tar.gz", ours, plain),
        Row(case, "new bytes : whole image", ours, len(new.payload)),
    ]


def _small_change(tar: Path, old: Blob, folder: Path) -> list[Row]:
    changed = folder / "changed.tar"
    _with_one_file_changed(tar, changed)
    new = Blob.of(changed, folder)
    blocks, known = new.blocks(), old.blocks()
    return [
        Row("one small file", "new leaves", blocks.new_leaves(known), None, 3),
        Row("one small file", "new bytes", blocks.new_bytes(known)),
    ]


def _chain(folder: Path) -> list[Row]:
    blocks: dict[bytes, int] = {}
    payload: dict[bytes, int] = {}
    separate = separate_payload = 0
    for tree in CHAIN:
        blob = Blob.of(made(tree), folder)
        found = blob.blocks()
        blocks |= {**found.payload, **found.toc, **found.inner}
        payload |= found.payload
        separate += len(blob.data)
        separate_payload += len(blob.payload)
    return [
        Row("chain of ten", "bytes stored : ten separate images", sum(payload.values()), separate_payload, 0.45),
        Row("chain of ten", "the same, TOCs and inner blocks included", sum(blocks.values()), separate, 0.45),
    ]


def _overhead(blob: Blob) -> list[Row]:
    blocks = blob.blocks()
    entries = len(decode_detached(blob.toc_object).open().toc.entries)
    return [
        Row("DAG", "inner blocks : blob", sum(blocks.inner.values()), len(blob.data), 0.01),
        Row("TOC", "compressed bytes an entry, in the blob", sum(blocks.toc.values()) / entries, None, 70),
        Row("TOC", "compressed bytes an entry, the object", len(blob.toc_object) / entries, None, 70),
    ]


def _with_one_file_changed(source: Path, target: Path) -> None:
    """The tar with a text of 1 to 8 KiB near its middle edited: other bytes and another time, nothing else moved."""
    with tarfile.open(source) as tar:
        members = tar.getmembers()
    member = next(item for item in members[len(members) // 2 :] if item.isreg() and 1024 <= item.size <= 8192)
    data = bytearray(source.read_bytes())
    at = member.offset_data
    data[at : at + 10] = b"# edited.\n"
    header = data[at - 512 : at]
    header[136:148] = b"%011o\0" % (int(member.mtime) + 1)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at - 512 : at] = header
    target.write_bytes(data)


def _tar_gz(tar: Path) -> bytes:
    return igzip.compress(tar.read_bytes(), 3, mtime=0)


class Kubo:
    """Kubo's chunkers, on a repository without a daemon."""

    def __init__(self, path: Path) -> None:
        self._environment = {**os.environ, "IPFS_PATH": str(path)}
        if not path.exists():
            self._run("init", "--profile", "server,test", "--empty-repo")

    def new_bytes(self, old: bytes, new: bytes, chunker: str) -> int:
        """Bytes of blocks that ``new`` has and ``old`` has not."""
        cids = [
            self._run("add", "-Q", "--pin=false", "--cid-version=1", f"--chunker={chunker}", input=data).decode().strip()
            for data in (old, new)
        ]
        stat = json.loads(self._run("dag", "stat", "--enc=json", "--progress=false", *cids))
        if cids[0] == cids[1]:
            return 0
        return int(stat["TotalSize"]) - next(int(dag["Size"]) for dag in stat["DagStats"] if dag["Cid"] == cids[0])

    def _run(self, *arguments: str, input: bytes | None = None) -> bytes:
        return subprocess.run(
            [_IPFS, *arguments], env=self._environment, input=input, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        ).stdout
