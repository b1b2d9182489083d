"""Conversion against stargz-snapshotter's ``ctr-remote image convert``, on the same images in the same run, in the same containerd.

"command": the whole of it on both sides, ``ipfs-store convert`` and ``ctr-remote image convert`` from one image of containerd to another.
"layer": the library alone, which reads the layer out of containerd's content store and has the new one on disk (fsync), beside their whole
command. Best of the runs on both sides; processor seconds and memory are those of the two commands' processes, without containerd's.
"no compression, no hash": what our layer takes of a processor where neither is done. "the disk": the tar read and the blob written and synced.

The images are Debian root file systems of 280 and 790 MB, 10,000 and 26,000 entries (``material/debian.py``), made at the first run, which takes root and
some minutes; or those of ``IPFS_STORE_BENCH_IMAGES``, archives separated by colons. ``IPFS_STORE_BENCH_RUNS``: 2. ``IPFS_STORE_BENCH_FORMATS``: both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.material.archive import docker_archive
from scripts.benchmarks.material.debian import APPLICATIONS, LARGE, Tree, made
from scripts.benchmarks.rows import Row
from tests.containerd import PrivateContainerd

IMAGES = os.environ.get("IPFS_STORE_BENCH_IMAGES", "")
FORMATS = os.environ.get("IPFS_STORE_BENCH_FORMATS", "estargz,zstd:chunked").split(",")
RUNS = int(os.environ.get("IPFS_STORE_BENCH_RUNS", "2"))
_OURS = """
import os, sys
from pathlib import Path
from ipfs_store.formats.options import WriteOptions
from ipfs_store.formats.writer import write_layer
written = write_layer(Path(sys.argv[1]), Path(sys.argv[2]), WriteOptions(format=sys.argv[3]))
with open(sys.argv[2], "rb") as file:
    os.fsync(file.fileno())
print(written.size, written.uncompressed_size)
"""
_BARE = """
from ipfs_store.formats import blobfile, writer
class Hash:
    def __init__(self, data=b""):
        pass
    def update(self, data):
        pass
    def hexdigest(self):
        return "0" * 64
class hashlib:
    sha256 = Hash
blobfile.hashlib = writer.hashlib = hashlib
writer.codec = lambda compression, level: lambda pieces: [bytes(piece[:1]) for piece in pieces]
"""


@dataclass(frozen=True)
class Run:
    """One conversion."""

    seconds: float
    processor: float
    memory: int
    """Bytes, at most."""
    size: int
    """Bytes of the layer's blob."""
    tar: int = 0
    """Bytes of the uncompressed tar."""


def run() -> list[Row]:
    """10 times theirs for both formats; a gzip blob at most 3 % larger than theirs; 300 MB of memory."""
    rows: list[Row] = []
    for image in map(Path, IMAGES.split(":")) if IMAGES else (APPLICATIONS[0], LARGE):
        with tempfile.TemporaryDirectory(prefix="b-", dir="/var/tmp") as name, PrivateContainerd(Path(name) / "c", "1.6") as daemon:
            rows += _image(image, daemon, Path(name))
    return rows


def _image(image: Path | Tree, daemon: PrivateContainerd, folder: Path) -> list[Row]:
    archive = (
        image if isinstance(image, Path) else docker_archive([made(image)], folder / f"{image.name}.tar", f"bench.invalid/{image.name}:1")
    )
    daemon.ctr("image", "import", "--no-unpack", "--base-name", "bench.invalid/image", archive, namespace="default")
    name = daemon.ctr("image", "ls", "-q").split()[0]
    _, layer = _layer(daemon, name)
    source = daemon.root / "root" / "io.containerd.content.v1.content" / "blobs" / "sha256" / layer.removeprefix("sha256:")
    rows: list[Row] = []
    for kind, flag in (("estargz", "--estargz"), ("zstd:chunked", "--zstdchunked")):
        if kind not in FORMATS:
            continue
        layers, commands, theirs = [], [], []
        for number in range(RUNS):
            layers.append(_ours(source, folder / "layer", kind))
            target = f"bench.invalid/{kind[:4]}:{number}"
            ours = [str(Path(sys.executable).parent / "ipfs-store"), "convert", flag, "--oci", "--quiet", "--address", str(daemon.address)]
            commands.append(_command(daemon, [*ours, f"containerd:{name}", f"containerd:{target}"], target))
            reference = ["ctr-remote", "--address", str(daemon.address), "image", "convert", flag, "--oci", name, target]
            theirs.append(_command(daemon, reference, target))
        size = layers[0].tar
        against = min(theirs, key=lambda run: run.seconds)
        for what, runs in (("command", commands), ("layer", layers)):
            best = min(runs, key=lambda run: run.seconds)
            case = f"{archive.stem} ({size / 1e6:.0f} MB of tar), {kind}, {what}"
            rows += [
                Row(case, "seconds", best.seconds, against.seconds, 0.1),
                Row(case, "MB/s of tar", size / best.seconds / 1e6, size / against.seconds / 1e6, 10, at_least=True),
                Row(case, "processor seconds", best.processor, against.processor, 0.1),
                Row(case, "MB of memory, at most", best.memory / 1e6, None, 300),
            ]
        rows.append(Row(case, "bytes of the blob", best.size, against.size, 1.03 if kind == "estargz" else None))
        bare = _ours(source, folder / "layer", kind, bare=True)
        rows.append(Row(f"{archive.stem}, {kind}, no compression, no hash", "processor seconds", bare.processor))
        rows.append(Row(f"{archive.stem}, {kind}, the disk", "seconds", _disk(source, folder / "layer", best.size)))
    return rows


def _disk(source: Path, target: Path, size: int) -> float:
    begun = time.perf_counter()
    with source.open("rb", buffering=0) as file, target.open("xb", buffering=0) as out:
        while piece := file.read(1 << 20):
            size -= out.write(piece[:size])
        os.fsync(out.fileno())
    target.unlink()
    return time.perf_counter() - begun


def _ours(source: Path, target: Path, kind: str, *, bare: bool = False) -> Run:
    target.unlink(missing_ok=True)
    code = _BARE + _OURS if bare else _OURS
    seconds, processor, memory, out = _timed([sys.executable, "-c", code, str(source), str(target), kind])
    target.unlink()
    size, tar = map(int, out.split())
    return Run(seconds, processor, memory, size, tar)


def _command(daemon: PrivateContainerd, command: list[str], target: str) -> Run:
    seconds, processor, memory, _ = _timed(command)
    size, _ = _layer(daemon, target)
    # What was converted must not be found done the next time.
    daemon.ctr("image", "rm", "--sync", target)
    return Run(seconds, processor, memory, size)


def _timed(command: list[str]) -> tuple[float, float, int, str]:
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10, out


def _layer(daemon: PrivateContainerd, name: str) -> tuple[int, str]:
    """Size and digest of the image's largest layer."""
    digest = next(line.split()[2] for line in daemon.ctr("image", "ls").splitlines()[1:] if line.split()[0] == name)
    document = json.loads(daemon.ctr("content", "get", digest))
    if "manifests" in document:
        document = json.loads(daemon.ctr("content", "get", document["manifests"][0]["digest"]))
    return max((layer["size"], layer["digest"]) for layer in document["layers"])
