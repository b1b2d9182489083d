# ruff: noqa: N802 the service's names are those of its proto
"""A snapshotter as small as can be, that knows some layers by the CID they are named by: what a lazy one looks like to containerd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf import empty_pb2

from snapshotter.containerd.protos import mount_pb2, snapshots_pb2
from snapshotter.containerd.protos.snapshots_pb2_grpc import SnapshotsServicer, add_SnapshotsServicer_to_server

URLS, REF = "containerd.io/snapshot/remote/urls", "containerd.io/snapshot.ref"


class LazySnapshotter(SnapshotsServicer):
    """``layers``: URL -> folder with the layer's files. Every snapshot is a folder; a container's root an overlay of them."""

    def __init__(self, root: Path, socket: Path) -> None:
        self.layers: dict[str, Path] = {}
        self.asked: list[dict[str, str]] = []
        """Labels of every Prepare that named its target."""
        self._root = root
        self._infos: dict[str, snapshots_pb2.Info] = {}
        self._folders: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        add_SnapshotsServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix://{socket}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        labels = dict(request.labels)
        with self._lock:
            if REF in labels:
                self.asked.append(labels)
                folder = self.layers.get(labels.get(URLS, ""))
                if folder is not None:
                    self._add(labels[REF], request.parent, snapshots_pb2.COMMITTED, labels, folder)
                    context.abort(grpc.StatusCode.ALREADY_EXISTS, f"target snapshot {labels[REF]!r}")
            self._add(request.key, request.parent, snapshots_pb2.ACTIVE, labels, None)
            return snapshots_pb2.PrepareSnapshotResponse(mounts=self._mounts(request.key))

    def View(self, request: snapshots_pb2.ViewSnapshotRequest, context: grpc.ServicerContext) -> snapshots_pb2.ViewSnapshotResponse:
        with self._lock:
            self._add(request.key, request.parent, snapshots_pb2.VIEW, dict(request.labels), None)
            return snapshots_pb2.ViewSnapshotResponse(mounts=self._mounts(request.key))

    def Mounts(self, request: snapshots_pb2.MountsRequest, context: grpc.ServicerContext) -> snapshots_pb2.MountsResponse:
        self._get(request.key, context)
        return snapshots_pb2.MountsResponse(mounts=self._mounts(request.key))

    def Commit(self, request: snapshots_pb2.CommitSnapshotRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        with self._lock:
            info = self._get(request.key, context)
            folder = self._folders[request.key]
            self._add(request.name, info.parent, snapshots_pb2.COMMITTED, {**info.labels, **request.labels}, folder)
            del self._infos[request.key], self._folders[request.key]
        return empty_pb2.Empty()

    def Remove(self, request: snapshots_pb2.RemoveSnapshotRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        with self._lock:
            self._get(request.key, context)
            del self._infos[request.key], self._folders[request.key]
        return empty_pb2.Empty()

    def Stat(self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext) -> snapshots_pb2.StatSnapshotResponse:
        return snapshots_pb2.StatSnapshotResponse(info=self._get(request.key, context))

    def Update(self, request: snapshots_pb2.UpdateSnapshotRequest, context: grpc.ServicerContext) -> snapshots_pb2.UpdateSnapshotResponse:
        return snapshots_pb2.UpdateSnapshotResponse(info=self._get(request.info.name, context))

    def List(
        self, request: snapshots_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        # Filters only spare work: containerd looks at everything again.
        yield snapshots_pb2.ListSnapshotsResponse(info=list(self._infos.values()))

    def Usage(self, request: snapshots_pb2.UsageRequest, context: grpc.ServicerContext) -> snapshots_pb2.UsageResponse:
        self._get(request.key, context)
        return snapshots_pb2.UsageResponse()

    def Cleanup(self, request: snapshots_pb2.CleanupRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def _add(self, key: str, parent: str, kind: snapshots_pb2.Kind.ValueType, labels: dict[str, str], folder: Path | None) -> None:
        if folder is None:
            folder = self._root / f"{len(list(self._root.iterdir()))}"
            (folder / "fs").mkdir(parents=True)
            (folder / "work").mkdir()
            folder = folder / "fs"
        info = snapshots_pb2.Info(name=key, parent=parent, kind=kind, labels=labels)
        info.created_at.GetCurrentTime()
        self._infos[key], self._folders[key] = info, folder

    def _get(self, key: str, context: grpc.ServicerContext) -> snapshots_pb2.Info:
        if key not in self._infos:
            _abort(context, f"snapshot {key!r}")
        return self._infos[key]

    def _mounts(self, key: str) -> list[mount_pb2.Mount]:
        info, lower = self._infos[key], list[str]()
        parent = info.parent
        while parent:
            lower.append(str(self._folders[parent]))
            parent = self._infos[parent].parent
        upper = self._folders[key]
        if not lower:
            return [mount_pb2.Mount(type="bind", source=str(upper), options=["rbind", "rw"])]
        if info.kind == snapshots_pb2.VIEW:
            lower.insert(0, str(upper))
            return [mount_pb2.Mount(type="overlay", source="overlay", options=["lowerdir=" + ":".join(lower)])]
        options = ["lowerdir=" + ":".join(lower), f"upperdir={upper}", f"workdir={upper.parent / 'work'}"]
        return [mount_pb2.Mount(type="overlay", source="overlay", options=options)]


def _abort(context: Any, what: str) -> NoReturn:
    context.abort(grpc.StatusCode.NOT_FOUND, f"{what}: not found")
    raise AssertionError("abort raises")
