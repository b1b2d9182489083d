"""A snapshotter, by way of containerd, which keeps names apart by namespace and tells its garbage collection; and the diff service."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import grpc

from ipfs_store.oci import Descriptor, Digest
from snapshotter.containerd.connection import Connection
from snapshotter.containerd.errors import ContainerdNotFound, SnapshotterUnavailable
from snapshotter.containerd.protos import diff_pb2, mount_pb2, snapshots_pb2
from snapshotter.containerd.protos.diff_pb2_grpc import DiffStub
from snapshotter.containerd.protos.snapshots_pb2_grpc import SnapshotsStub
from snapshotter.containerd.records import wire_descriptor

# containerd finds out by a failing call that a snapshotter was restarted, and waits up to 3 s before it connects anew.
_PATIENCE = 4.0  # seconds
_PAUSE = 0.2

Request = TypeVar("Request")
Response = TypeVar("Response")


def chain_ids(diff_ids: Iterable[Digest]) -> Iterator[Digest]:
    """The chain ID of each layer, lowest first: the name of its snapshot (image-spec, config.md, "Layer ChainID")."""
    chain: Digest | None = None
    for diff_id in diff_ids:
        chain = diff_id if chain is None else Digest(hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest())
        yield chain


class Snapshots:
    """The snapshots of one snapshotter. Every call raises SnapshotterUnavailable if it does not answer."""

    def __init__(self, connection: Connection, snapshotter: str) -> None:
        self._connection = connection
        self._stub = SnapshotsStub(connection.channel)
        self.snapshotter = snapshotter

    def stat(self, key: str) -> snapshots_pb2.Info:
        """Raises ContainerdNotFound."""
        return self._call(self._stub.Stat, snapshots_pb2.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)).info

    def exists(self, key: str) -> bool:
        """Whether there is a snapshot of that name."""
        try:
            self.stat(key)
        except ContainerdNotFound:
            return False
        return True

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[mount_pb2.Mount]:
        """A writable snapshot on top of ``parent``: how to mount it. Raises AlreadyExists, ContainerdNotFound (the parent)."""
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=labels)
        return list(self._call(self._stub.Prepare, request).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Make the writable snapshot ``key`` the committed one ``name``; raises AlreadyExists."""
        self._call(self._stub.Commit, snapshots_pb2.CommitSnapshotRequest(snapshotter=self.snapshotter, name=name, key=key, labels=labels))

    def remove(self, key: str) -> None:
        """Raises ContainerdNotFound."""
        self._call(self._stub.Remove, snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key))

    def _call(self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._connection.call(method, request, seconds=None)
            except SnapshotterUnavailable as error:
                if time.monotonic() > deadline:
                    said = error.message.removeprefix("containerd: ")
                    raise SnapshotterUnavailable(
                        f"snapshotter {self.snapshotter!r} does not answer: {said}",
                        hint="is ipfs-snapshotter running? (ipfs-snapshotter status)",
                    ) from error
            time.sleep(_PAUSE)


def apply(connection: Connection, layer: Descriptor, mounts: Sequence[mount_pb2.Mount]) -> Digest:
    """Unpack a layer of the content store onto ``mounts``; the digest of what was in it, uncompressed."""
    request = diff_pb2.ApplyRequest(diff=wire_descriptor(layer), mounts=mounts)
    return Digest.parse(connection.call(DiffStub(connection.channel).Apply, request, seconds=None).applied.digest)
