"""The diff v1 service of gRPC, in front of `Differ`."""

from __future__ import annotations

import logging

import grpc

from ipfs_store.errors import IpfsStoreError
from ipfs_store.oci.media_types import layer_type
from snapshotter.containerd.connection import DEFAULT_NAMESPACE
from snapshotter.containerd.protos import descriptor_pb2, diff_pb2, diff_pb2_grpc, mount_pb2
from snapshotter.service.diff.differ import Differ, Wish
from snapshotter.service.folders import Mount
from snapshotter.service.snapshots import NotOurs

_log = logging.getLogger(__name__)


class DiffService(diff_pb2_grpc.DiffServicer):
    """UNIMPLEMENTED, for all that containerd's own differ does as well, makes it try that one."""

    def __init__(self, differ: Differ) -> None:
        self._differ = differ

    def Diff(self, request: diff_pb2.DiffRequest, context: grpc.ServicerContext) -> diff_pb2.DiffResponse:
        """The layer that a snapshot wrote."""
        media_type = request.media_type or layer_type("gzip")
        latest = request.source_date_epoch.seconds if request.HasField("source_date_epoch") else None
        namespace = next((str(value) for key, value in context.invocation_metadata() if key == "containerd-namespace"), DEFAULT_NAMESPACE)
        try:
            written = self._differ.diff(
                [_mount(mount) for mount in request.left], [_mount(mount) for mount in request.right],
                Wish(media_type, dict(request.labels), latest), namespace,
            )  # fmt: skip
        except NotOurs as error:
            _log.info("left to containerd's own differ: %s", error.message)
            context.abort(grpc.StatusCode.UNIMPLEMENTED, error.message)
        except (IpfsStoreError, OSError) as error:
            _log.error("no layer was made: %s", error)
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        return diff_pb2.DiffResponse(diff=descriptor_pb2.Descriptor(media_type=media_type, digest=str(written.digest), size=written.size))

    def Apply(self, request: diff_pb2.ApplyRequest, context: grpc.ServicerContext) -> diff_pb2.ApplyResponse:
        """Unpacking is not our business."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "layers are unpacked by containerd's own differ")
        raise AssertionError("abort raises")


def _mount(mount: mount_pb2.Mount) -> Mount:
    return Mount(mount.type, mount.source, list(mount.options))
