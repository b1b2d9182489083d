"""The snapshots service on a real socket, with layers that are folders of the test instead of FUSE mounts."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ipfs_store.erofs import merge_trees, read_image, write_image
from snapshotter.containerd.protos import snapshots_pb2 as pb
from snapshotter.containerd.protos import snapshots_pb2_grpc
from snapshotter.containerd.protos.mount_pb2 import Mount
from snapshotter.mounts.interface import LayerSource, MountFailed
from snapshotter.mounts.native import NativeMounter, unmount_below
from snapshotter.service.grpc import start_server
from snapshotter.service.snapshots import Snapshotter
from tests.mounts.made import image_of

ACTIVE, VIEW, COMMITTED = pb.Kind.ACTIVE, pb.Kind.VIEW, pb.Kind.COMMITTED


@dataclass
class FolderMounter:
    """Layers that are the folders below ``root`` that have their CID for a name; with ``native`` they become images of metadata."""

    root: Path
    native: bool = False
    mounted: dict[int, LayerSource] = field(default_factory=dict)
    calls: int = 0
    failure: str = ""
    chains: list[Sequence[int]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for folder in self.data:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def data(self) -> list[Path]:
        """The data-only layers: files go to the second, as those that are not cached do."""
        return [self.root.parent / "cache", self.root.parent / "fuse"]

    def mount(self, layer: int, source: LayerSource, instance: int = 0) -> Path:
        with self._lock:
            if layer not in self.mounted:
                self.calls += 1
                if self.failure:
                    raise MountFailed(self.failure)
                if not (self.root / source.cid).exists():
                    raise MountFailed(f"nobody has {source.cid}")
                self.mounted[layer] = source
            return self.root / source.cid

    def unmount(self, layer: int) -> None:
        self.mounted.pop(layer, None)

    def expire(self) -> None:
        pass

    sweep = expire

    def image(self, layer: int, source: LayerSource) -> Path:
        tree = self.mount(layer, source)
        image = self.root / f"{source.cid}.erofs"
        with self._lock:
            if not image.exists():
                image.write_bytes(image_of(tree, self.data[1]))
        return image

    def chain(self, layers: Sequence[int]) -> Path | None:
        """One image for them all; as the data plane does, it says once that there is none yet."""
        if not self.native or layers not in self.chains:
            self.chains.append(layers)
            return None
        image = self.root / f"chain-{'-'.join(map(str, layers))}.erofs"
        if not image.exists():
            images = [(self.root / f"{self.mounted[layer].cid}.erofs").read_bytes() for layer in layers]
            image.write_bytes(write_image(merge_trees([read_image(data) for data in images])))
        return image

    forget = unmount


class Client:
    """The service as containerd calls it; errors are grpc.RpcError."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = snapshots_pb2_grpc.SnapshotsStub(self._channel)

    restore: Callable[[], None]
    """What the daemon does after it has started."""

    def prepare(self, key: str, parent: str = "", **labels: str) -> list[Mount]:
        return self.prepare_with(key, parent, labels)

    def prepare_with(self, key: str, parent: str, labels: Mapping[str, str], *, namespace: str = "") -> list[Mount]:
        request = pb.PrepareSnapshotRequest(snapshotter="ipfs", key=key, parent=parent, labels=labels)
        return list(self.stub.Prepare(request, metadata=_metadata(namespace)).mounts)

    def view(self, key: str, parent: str = "") -> list[Mount]:
        return list(self.stub.View(pb.ViewSnapshotRequest(snapshotter="ipfs", key=key, parent=parent)).mounts)

    def mounts(self, key: str) -> list[Mount]:
        return list(self.stub.Mounts(pb.MountsRequest(snapshotter="ipfs", key=key)).mounts)

    def commit(self, name: str, key: str, **labels: str) -> None:
        self.stub.Commit(pb.CommitSnapshotRequest(snapshotter="ipfs", name=name, key=key, labels=labels))

    def remove(self, key: str) -> None:
        self.stub.Remove(pb.RemoveSnapshotRequest(snapshotter="ipfs", key=key))

    def stat(self, key: str) -> pb.Info:
        return self.stub.Stat(pb.StatSnapshotRequest(snapshotter="ipfs", key=key)).info

    def update(self, name: str, labels: Mapping[str, str], *paths: str) -> pb.Info:
        request = pb.UpdateSnapshotRequest(snapshotter="ipfs", info=pb.Info(name=name, labels=labels))
        request.update_mask.paths.extend(paths)
        return self.stub.Update(request).info

    def list(self, *filters: str, namespace: str = "") -> dict[str, pb.Info]:
        pages = self.stub.List(pb.ListSnapshotsRequest(snapshotter="ipfs", filters=filters), metadata=_metadata(namespace))
        return {info.name: info for page in pages for info in page.info}

    def usage(self, key: str) -> tuple[int, int]:
        answer = self.stub.Usage(pb.UsageRequest(snapshotter="ipfs", key=key))
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self.stub.Cleanup(pb.CleanupRequest(snapshotter="ipfs"))

    def close(self) -> None:
        self._channel.close()


def _metadata(namespace: str) -> list[tuple[str, str]]:
    return [("containerd-namespace", namespace)] if namespace else []


@contextlib.contextmanager
def served(root: Path, mounter: FolderMounter, *, per_namespace: bool = False) -> Iterator[Client]:
    native = NativeMounter(mounter, root / "images", "file") if mounter.native else None
    snapshotter = Snapshotter(root, native or mounter, data=mounter.data if native else (), per_namespace=per_namespace)
    server = start_server(snapshotter, root / "s.sock")
    client = Client(root / "s.sock")
    client.restore = snapshotter.restore
    try:
        yield client
    finally:
        client.close()
        server.stop(None).wait()
        snapshotter.close()


def reboot(root: Path) -> None:
    """Everything that was mounted below ``root`` is gone."""
    unmount_below([root])


@contextlib.contextmanager
def mounted(mounts: list[Mount], target: Path) -> Iterator[Path]:
    """``target`` with the mounts applied, as containerd would."""
    target.mkdir(exist_ok=True)
    (mount,) = mounts
    options = ",".join(mount.options)
    if mount.type == "bind":
        subprocess.run(["mount", "--rbind", mount.source, target], check=True)
        if "ro" in mount.options:
            subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
    else:
        subprocess.run(["mount", "-t", mount.type, "-o", options, mount.source, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


@contextlib.contextmanager
def code(expected: grpc.StatusCode) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        assert error.code() == expected, f"{error.code()}: {error.details()}"
    else:
        raise AssertionError(f"no error, where {expected} was due")


EXISTS = grpc.StatusCode.ALREADY_EXISTS
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
