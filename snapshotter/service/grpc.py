"""The snapshots v1 service of gRPC, on a unix socket, in front of `Snapshotter`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from ipfs_store.errors import InvalidInput, IpfsStoreError, StorageFailed, Unavailable
from snapshotter.containerd.protos import diff_pb2_grpc, mount_pb2, snapshots_pb2, snapshots_pb2_grpc
from snapshotter.service.diff.differ import Differ
from snapshotter.service.diff.grpc import DiffService
from snapshotter.service.folders import Mount
from snapshotter.service.snapshots import Snapshotter
from snapshotter.state import AlreadyExists, FailedPrecondition, InvalidArgument, Missing, Snapshot, parse_filters

_log = logging.getLogger(__name__)
_THREADS = 32  # requests at a time: a Prepare may wait for a TOC from the network, and must not keep the others waiting
_LONGEST_SOCKET = 107  # bytes of sun_path without its end (unix(7))
_BATCH = 100  # snapshots in one message of a listing
T = TypeVar("T")

_CODES: tuple[tuple[type[IpfsStoreError], grpc.StatusCode], ...] = (
    (AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (Missing, grpc.StatusCode.NOT_FOUND),
    (FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (StorageFailed, grpc.StatusCode.INTERNAL),
)


class Service(snapshots_pb2_grpc.SnapshotsServicer):
    """One method for each RPC; the field ``snapshotter`` of requests is for whom containerd asks, and not looked at."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        """A new active snapshot."""
        labels, namespace = dict(request.labels), _namespace(context)
        mounts = self._call(context, lambda: self._snapshotter.prepare(request.key, request.parent, labels, namespace=namespace))
        return snapshots_pb2.PrepareSnapshotResponse(mounts=map(_mount, mounts))

    def View(self, request: snapshots_pb2.ViewSnapshotRequest, context: grpc.ServicerContext) -> snapshots_pb2.ViewSnapshotResponse:
        """A new view."""
        mounts = self._call(context, lambda: self._snapshotter.view(request.key, request.parent, dict(request.labels)))
        return snapshots_pb2.ViewSnapshotResponse(mounts=map(_mount, mounts))

    def Mounts(self, request: snapshots_pb2.MountsRequest, context: grpc.ServicerContext) -> snapshots_pb2.MountsResponse:
        """How a snapshot is mounted."""
        mounts = self._call(context, lambda: self._snapshotter.mounts(request.key))
        return snapshots_pb2.MountsResponse(mounts=map(_mount, mounts))

    def Commit(self, request: snapshots_pb2.CommitSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        """Active to committed."""
        self._call(context, lambda: self._snapshotter.commit(request.key, request.name, dict(request.labels)))
        return Empty()

    def Remove(self, request: snapshots_pb2.RemoveSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        """Delete."""
        self._call(context, lambda: self._snapshotter.remove(request.key))
        return Empty()

    def Stat(self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext) -> snapshots_pb2.StatSnapshotResponse:
        """One snapshot."""
        return snapshots_pb2.StatSnapshotResponse(info=_info(self._call(context, lambda: self._snapshotter.stat(request.key))))

    def Update(self, request: snapshots_pb2.UpdateSnapshotRequest, context: grpc.ServicerContext) -> snapshots_pb2.UpdateSnapshotResponse:
        """Change labels."""
        info = request.info
        changed = self._call(context, lambda: self._snapshotter.update(info.name, dict(info.labels), list(request.update_mask.paths)))
        return snapshots_pb2.UpdateSnapshotResponse(info=_info(changed))

    def List(
        self, request: snapshots_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        """All that match, some at a time."""
        namespace = _namespace(context)
        found = self._call(context, lambda: self._snapshotter.select(parse_filters(request.filters), namespace=namespace))
        for start in range(0, len(found), _BATCH):
            yield snapshots_pb2.ListSnapshotsResponse(info=map(_info, found[start : start + _BATCH]))

    def Usage(self, request: snapshots_pb2.UsageRequest, context: grpc.ServicerContext) -> snapshots_pb2.UsageResponse:
        """What it takes on disk."""
        usage = self._call(context, lambda: self._snapshotter.usage(request.key))
        return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, request: snapshots_pb2.CleanupRequest, context: grpc.ServicerContext) -> Empty:
        """Delete leftovers."""
        self._call(context, self._snapshotter.cleanup)
        return Empty()

    def _call(self, context: grpc.ServicerContext, work: Callable[[], T]) -> T:
        try:
            return work()
        except IpfsStoreError as error:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)
            if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE):
                _log.error("%s", error.message)
            context.abort(code, f"{error.message} ({error.hint})" if error.hint else error.message)
        except OSError as error:
            _log.error("%s", error)
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        raise AssertionError("abort raises")


def start_server(snapshotter: Snapshotter, socket: Path, differ: Differ | None = None) -> grpc.Server:
    """Serve on ``socket`` (mode 0600; one that is left over is replaced), with ``differ`` the diff API too. Raises StorageFailed."""
    server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"), options=[("grpc.so_reuseport", 0)])
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(Service(snapshotter), server)
    if differ is not None:
        diff_pb2_grpc.add_DiffServicer_to_server(DiffService(differ), server)
    # Bound under another name and renamed once it serves: who sees the socket can connect, and one that is left over is replaced.
    bound = socket.with_name(f".{socket.name}")
    if len(os.fsencode(bound)) > _LONGEST_SOCKET:
        raise InvalidInput(
            f"the socket's path {socket} is too long for a unix socket (at most {_LONGEST_SOCKET - 1} bytes)",
            hint="choose a shorter one: socket = ...",
        )
    try:
        socket.parent.mkdir(parents=True, exist_ok=True)
        bound.unlink(missing_ok=True)
        # No moment with another mode: whoever can connect can have anything mounted.
        before = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{bound}")
        finally:
            os.umask(before)
        server.start()
        bound.rename(socket)
    except (RuntimeError, OSError) as error:
        raise StorageFailed(f"cannot listen on {socket}: {error}") from error
    return server


def _namespace(context: grpc.ServicerContext) -> str:
    """For whom containerd asks. Before 2.0 it does not say, and its garbage collection never does: empty."""
    return next((str(value) for key, value in context.invocation_metadata() if key == "containerd-namespace"), "")


def _mount(mount: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)


def _info(snapshot: Snapshot) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=snapshots_pb2.Kind.ValueType(int(snapshot.kind)),
        created_at=_time(snapshot.created),
        updated_at=_time(snapshot.updated),
        labels=dict(snapshot.labels),
    )


def _time(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)
