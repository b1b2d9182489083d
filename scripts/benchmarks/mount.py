"""Mounted images next to plain overlayfs of the same image unpacked, in turns, on containerd 2 with native mounts.

The image is a docker archive: $IPFS_STORE_BENCH_IMAGE, or a small one that is made on the spot.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from scripts.benchmarks.rows import Row
from snapshotter.containerd.protos import snapshots_pb2, snapshots_pb2_grpc
from tests.containerd import PrivateContainerd
from tests.integration.stage import Stage, docker_archive, stage, vector_layers
from tests.service.served import Client, mounted

_TIMES = 7
_SHORT = 0.1  # seconds; what takes less is done more often
_SMALL = 1 << 20
_NAMESPACE = (("containerd-namespace", "default"),)
Action = Callable[[], object]


def run() -> list[Row]:
    """All rows; half a minute for a small image, some minutes for one of a gigabyte."""
    top = Path(tempfile.mkdtemp(prefix="bench-mount-", dir="/var/tmp"))
    try:
        given = os.environ.get("IPFS_STORE_BENCH_IMAGE")
        image = Path(given) if given else docker_archive(top / "image.tar", vector_layers(top))
        with stage(top / "stage", "native") as on_stage:
            pushed = on_stage.push(image)
            on_stage.serve()
            on_stage.start_daemon(give_up=60)
            containerd = PrivateContainerd(top / "c", "2.4", {"ipfs": on_stage.socket})
            with containerd:
                containerd.wait_for_snapshotter("ipfs")
                return _rows(on_stage, containerd, pushed["cid"], top)
    finally:
        shutil.rmtree(top)


def _rows(on_stage: Stage, containerd: PrivateContainerd, cid: str, top: Path) -> list[Row]:
    lazy = on_stage.rpull(containerd, cid, "--name", "lazy")
    on_stage.rpull(containerd, cid, "--name", "eager", "--snapshotter", "overlayfs")
    chain = str(lazy["layers"][-1]["chain_id"])
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(_container(containerd, "overlayfs", "plain", chain, top))
        first = stack.enter_context(_container(containerd, "ipfs", "first", chain, top))
        # Whoever reads everything for the first time; from here on all data are local.
        start = time.perf_counter()
        _tar(first)()
        rows.append(Row("everything, first time", "seconds", time.perf_counter() - start))
        small, large = _files(plain)
        rows.extend(_pair(f"{len(small)} small files, same container", _read(first, small), _read(plain, small), 1.1))
        second = stack.enter_context(_container(containerd, "ipfs", "second", chain, top))
        rows += [
            *_pair("ls -lR", _walk("ls", "-lR", second), _walk("ls", "-lR", plain), 1.05),
            *_pair("find -size +1k", _walk("find", second, "-size", "+1k"), _walk("find", plain, "-size", "+1k"), 1.05),
            *_pair("tar c | cat", _tar(second), _tar(plain), 1.1),
            *_pair("small files", _read(second, small), _read(plain, small), 1.1),
            *_pair("sequential read", _read(second, [large]), _read(plain, [large]), 1.05),
            *_pair("random 4 KiB reads", _random(second / large), _random(plain / large), 1.05),
            *_pair("chown -R, nothing read", *_chowned(stack, containerd, chain, top), 3.0),
        ]
    rows.extend(_pair("second start of a container", _start(containerd, "ipfs", "lazy"), _start(containerd, "overlayfs", "eager"), 1.05))
    return rows + _mounting(on_stage, lazy)


def _mounting(on_stage: Stage, lazy: dict[str, Any]) -> list[Row]:
    """The largest layer, mounted from its TOC and once more."""
    status = {layer["digest"]: layer for layer in on_stage.status()["layers"]}
    layer = max(status.values(), key=lambda layer: int(layer["entries"]))
    digest = layer["digest"]
    toc = next(item.get("toc_digest", "") for item in lazy["layers"] if item["digest"] == digest)
    labels = {
        "containerd.io/snapshot/remote/urls": f"ipfs://{layer['cid']}",
        "containerd.io/snapshot/cri.layer-digest": digest,
        "containerd.io/snapshot/stargz/toc.digest": toc,
    }
    client = Client(on_stage.socket)
    try:
        rows = []
        # What is kept is kept by its namespace's salt and TOC digest; for a first mount it has to go.
        for case, again, target in (("from its TOC", False, 0.5), ("again", True, 0.05)):
            spent = []
            for number in range(3):
                kept = on_stage.root / "snapshotter/cache/metadata"
                if not again:
                    for folder in kept.iterdir():
                        shutil.rmtree(folder)
                start = time.perf_counter()
                with contextlib.suppress(grpc.RpcError):
                    client.prepare_with(f"x-{again}-{number}", "", {**labels, "containerd.io/snapshot.ref": f"bench-{again}-{number}"})
                spent.append(time.perf_counter() - start)
                client.remove(f"bench-{again}-{number}")
            rows.append(Row(f"layer of {layer['entries']} entries mounted {case}", "seconds", min(spent), target=target))
        return rows
    finally:
        client.close()


@contextlib.contextmanager
def _container(containerd: PrivateContainerd, snapshotter: str, key: str, chain: str, top: Path) -> Iterator[Path]:
    """The root of a container that does not run."""
    key = f"{key}-{snapshotter}"
    with grpc.insecure_channel(f"unix:{containerd.address}") as channel:
        snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=snapshotter, key=key, parent=chain, labels={"containerd.io/gc.root": "bench"}
        )
        mounts = list(snapshots.Prepare(request, metadata=_NAMESPACE).mounts)
        try:
            with mounted(mounts, top / key) as root:
                yield root
        finally:
            snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key), metadata=_NAMESPACE)


def _pair(case: str, ours: Action, reference: Action, target: float) -> list[Row]:
    """The fastest of several, in turns: what else the machine does only ever adds. Processor time is told as well, which it hardly changes."""
    start = time.perf_counter()
    ours()
    reference()
    once = time.perf_counter() - start
    spent: tuple[list[float], list[float]] = ([], [])
    used: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TIMES if once > _SHORT else 5 * _TIMES):
        for number, action in enumerate((ours, reference)):
            start, before = time.perf_counter(), _processor()
            action()
            spent[number].append(time.perf_counter() - start)
            used[number].append(_processor() - before)
    return [Row(case, "seconds", min(spent[0]), min(spent[1]), target), Row(case, "of a processor", min(used[0]), min(used[1]))]


def _processor() -> float:
    """Seconds of a processor that this process and its children have used; not those of the data plane."""
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def _walk(*command: str | Path) -> Action:
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _tar(root: Path) -> Action:
    return lambda: subprocess.run(f"tar c -C {root} . | cat > /dev/null", shell=True, check=True, stderr=subprocess.DEVNULL)


def _files(root: Path) -> tuple[list[str], str]:
    """Paths of small files, and the largest."""
    listed = subprocess.run(["find", root, "-type", "f", "-printf", "%s %P\\0"], capture_output=True, check=True).stdout.decode(
        errors="surrogateescape"
    )
    sizes = {path: int(size) for size, _, path in (line.partition(" ") for line in listed.split("\0")[:-1])}
    for name in ("stargz.index.json", ".no.prefetch.landmark", ".prefetch.landmark"):  # an ordinary unpacking leaves them in the root
        sizes.pop(name, None)
    small = sorted(path for path, size in sizes.items() if 0 < size < _SMALL)
    return small, max(sizes, key=lambda path: sizes[path])


def _read(root: Path, paths: Sequence[str]) -> Action:
    names = [f"{root}/{path}" for path in paths]

    def read() -> None:
        buffer = bytearray(1 << 20)
        for name in names:
            file = os.open(name, os.O_RDONLY)
            while os.readv(file, [buffer]):
                pass
            os.close(file)

    return read


def _random(path: Path, count: int = 50_000) -> Action:
    blocks = random.Random(1).choices(range(path.stat().st_size // 4096 or 1), k=count)

    def read() -> None:
        file = os.open(path, os.O_RDONLY)
        for block in blocks:
            os.pread(file, 4096, block * 4096)
        os.close(file)

    return read


def _chowned(stack: contextlib.ExitStack, containerd: PrivateContainerd, chain: str, top: Path) -> tuple[Action, Action]:
    """chown of a whole tree: the first time copies every inode up, so each time is in a container of its own."""
    made = {
        name: iter([stack.enter_context(_container(containerd, name, f"chown-{n}", chain, top)) for n in range(_TIMES + 1)])
        for name in ("ipfs", "overlayfs")
    }
    return tuple(lambda name=name: subprocess.run(["chown", "-R", "7:7", next(made[name])], check=True) for name in made)  # type: ignore[return-value]


def _start(containerd: PrivateContainerd, snapshotter: str, image: str) -> Action:
    return lambda: containerd.ctr("run", "--rm", "--snapshotter", snapshotter, image, f"start-{snapshotter}", "true")
