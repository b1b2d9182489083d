"""The cold path of native mounts: what is asked for the first time, with its blocks in the local embedded node; and metadata, built and kept.

Needs root and 6 GB below /var/tmp; three minutes. ``cold``, ``metadata`` and ``fairness`` are for other benchmarks to call.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ipfs_store.cids import format_cid
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.chunker import Chunker
from ipfs_store.formats.options import WriteOptions
from ipfs_store.formats.writer import write_layer
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.interface import Block
from scripts.benchmarks.rows import Row
from snapshotter.dataplane.client import DataPlane, Launch
from tests.dataplane.conftest import Source
from tests.native.conftest import Native, a_plane, tar_of

MB = 1_000_000
_TIMES = 3
_LARGE = 500 * MB
_STALLED = 100


def run() -> list[Row]:
    """All rows."""
    with _scratch() as top:
        return [*cold(top), *metadata(top), *fairness()]


def cold(top: Path) -> list[Row]:
    """Large files in order, and small ones. Nothing but large files is deleted between rounds: ext4 makes new files slowly after mass deletions."""
    large = {"noise": os.urandom(_LARGE), "programs": _programs(_LARGE)}
    small = {f"d{number // 50}/f{number}": os.urandom(1000 + number * 3) + b"line of text\n" * (number % 300) for number in range(1000)}
    source = push(top, "cold", {**large, **small})
    plain = top / "plain"
    plain.mkdir()
    subprocess.run(["tar", "-xf", top / "cold.tar", "-C", plain], check=True)
    paths = list(small)
    rates: dict[str, list[float]] = {name: [] for name in large}
    costs: dict[str, list[float]] = {name: [] for name in large}
    ours, reference = [], []
    for _ in range(_TIMES):
        with _plane(top) as native:
            root = native.overlay(native.image_of(source))
            pid = native.dataplane.status().pid
            for name in large:
                before = _processor(pid)
                rates[name].append(_LARGE / MB / _seconds(lambda root=root, name=name: _drain(root / name)))
                costs[name].append((_processor(pid) - before) / (_LARGE / MB) * 1000)
            ours.append(_seconds(lambda root=root: _read_all(root, paths)))
        with _overlay(top, plain) as root:
            _forget(plain, paths)
            reference.append(_seconds(lambda root=root: _read_all(root, paths)))
    return [
        Row("a 500 MB file that does not compress, first read", "MB/s", max(rates["noise"]), target=500, at_least=True),
        Row("the same", "ms of a processor a MB, data plane", min(costs["noise"])),
        Row("500 MB of programs and libraries, first read", "MB/s", max(rates["programs"]), target=500, at_least=True),
        Row("the same", "ms of a processor a MB, data plane", min(costs["programs"])),
        Row("1,000 small files, first read", "seconds", min(ours), min(reference), target=4),
    ]


def metadata(top: Path) -> list[Row]:
    """A layer of 30,000 files, mounted for the first time and again; ten of them in memory."""
    sources = [
        push(top, f"many{number}", {f"d{n // 40}/n{number}-{n}": b"%d %d" % (number, n) for n in range(30_000)}) for number in range(10)
    ]
    first, again = [], []
    with _plane(top) as native:
        native.image_of(push(top, "one", {"a": b"a"}))  # the processes are warm, as they are when an image has a second layer
        for source in sources:
            first.append(_seconds(lambda source=source: native.image_of(source)))
        native.unmount_all()
        for number in native.numbers.values():
            native.dataplane.unmount(number)
        for source in sources:
            again.append(_seconds(lambda source=source: native.image_of(source)))
        rss = native.dataplane.status().rss_bytes
    return [
        Row("a layer of 30,000 files, mounted from its TOC", "seconds", min(first), target=0.5),
        Row("the same, mounted before", "seconds", min(again), target=0.05),
        Row("ten of them, the data plane", "MB", rss / MB, target=150),
    ]


def fairness() -> list[Row]:
    """One image read while reads of another stall."""
    with a_plane() as native:
        data = {f"f{number}": os.urandom(2_000_000) for number in range(12)}
        well = [native.root(f"well{turn}", {path: os.urandom(2_000_000) for path in data}) for turn in range(2)]
        stalled = native.root("stalled", {f"s{number}": os.urandom(1_500_000) for number in range(_STALLED)})
        alone = _seconds(lambda: _read_all(well[0], list(data)))
        native.faults("hold")
        readers = [subprocess.Popen(["cat", stalled / f"s{number}"], stdout=subprocess.DEVNULL) for number in range(_STALLED)]
        try:
            deadline = time.monotonic() + 60
            while sum(wait.readers for wait in native.status("stalled").waiting) < _STALLED:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"only {len(native.status('stalled').waiting)} reads wait")
                time.sleep(0.05)
            native.faults("ok")
            beside = _seconds(lambda: _read_all(well[1], list(data)))
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
            native.faults("ok")
    return [Row(f"another image, {_STALLED} reads of one stalled", "seconds", beside, alone, target=1.5)]


class _Native(Native):
    def image_of(self, source: Source) -> Path:
        """The layer's metadata, mounted."""
        return self.image(source.cid, source.toc_digest)


@contextlib.contextmanager
def _plane(top: Path) -> Iterator[_Native]:
    folder = Path(tempfile.mkdtemp(prefix="plane-", dir=top))
    launch = Launch(
        mountpoint=folder / "mount",
        control=folder / "control.sock",
        cache=folder / "cache",
        node="embedded",
        node_path=top / "node",
        log=folder / "log",
        read_ahead_kib=4096,
    )
    dataplane = DataPlane(launch)
    try:
        with contextlib.ExitStack() as stack:
            dataplane.start()
            yield _Native(folder, dataplane, stack)
    finally:
        dataplane.stop()
        for path in (folder / "cache/contents").rglob("*"):
            if path.is_file() and path.stat().st_size >= MB:
                path.unlink()


def push(top: Path, name: str, files: dict[str, bytes]) -> Source:
    """The files as a layer in the embedded node, cut as a push cuts it."""
    blob = top / f"{name}.blob"
    written = write_layer(tar_of(top / f"{name}.tar", files), blob, WriteOptions())
    store = BlockStore(top / "node")
    builder = FileBuilder(inline=True)
    data = memoryview(blob.read_bytes())
    blocks = [Block(cid, block) for leaf in Chunker().leaves(data) for cid, block in builder.add(bytes(leaf))]
    blocks += [Block(cid, block) for cid, block in builder.finish()]
    for first in range(0, len(blocks), 128):
        store.write_many(blocks[first : first + 128])
    store.close()
    blob.unlink()
    assert builder.root is not None
    return Source(format_cid(builder.root), toc_digest=written.toc_digest)


@contextlib.contextmanager
def _overlay(top: Path, lower: Path) -> Iterator[Path]:
    """overlayfs on an unpacked layer."""
    folder = Path(tempfile.mkdtemp(prefix="overlay-", dir=top))
    for name in ("upper", "work", "root"):
        (folder / name).mkdir()
    options = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, folder / "root"], check=True)
    try:
        yield folder / "root"
    finally:
        subprocess.run(["umount", folder / "root"], check=True)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix="bench-dataplane-", dir="/var/tmp"))
    try:
        yield top
    finally:
        shutil.rmtree(top)


def _programs(size: int) -> bytes:
    """What this machine has of programs and libraries, one behind the other, as often as it takes (chunks are cut elsewhere then)."""
    whole = bytearray()
    paths = sorted(
        path for folder in ("/usr/bin", "/usr/lib") for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()
    )
    while len(whole) < size:
        for path in paths:
            if path.stat().st_size >= 100_000 and len(whole) < size:
                whole += path.read_bytes()
        whole += b"once more"
    return bytes(whole[:size])


def _processor(pid: int) -> float:
    """Seconds of a processor that the process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _drain(path: Path) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _read_all(root: Path, paths: Sequence[str]) -> None:
    for path in paths:
        with open(f"{root}/{path}", "rb", buffering=0) as file:  # noqa: PTH123
            while file.read(1 << 20):
                pass


def _forget(root: Path, paths: Sequence[str]) -> None:
    """Drop the files' pages, as if they had not been read since the machine started (but for directories and inodes)."""
    os.sync()
    for path in paths:
        with (root / path).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
