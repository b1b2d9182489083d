"""containerd's records: images and containers, by name. They are what its garbage collection starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import any_pb2, field_mask_pb2

from ipfs_store.errors import ImageNotFound
from ipfs_store.oci import Descriptor, Digest
from snapshotter.containerd.connection import Connection
from snapshotter.containerd.errors import AlreadyExists, ContainerdNotFound
from snapshotter.containerd.protos import containers_pb2, descriptor_pb2, images_pb2
from snapshotter.containerd.protos.containers_pb2_grpc import ContainersStub
from snapshotter.containerd.protos.images_pb2_grpc import ImagesStub

CID_LABEL = "org.ipfs-store.image.cid"
"""On an image record: the CID that it was pulled by."""
RUNTIME = "io.containerd.runc.v2"
_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


def wire_descriptor(descriptor: Descriptor) -> descriptor_pb2.Descriptor:
    """As containerd's services take it."""
    return descriptor_pb2.Descriptor(media_type=descriptor.media_type, digest=str(descriptor.digest), size=descriptor.size)


class Images:
    """Names for descriptors."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = ImagesStub(connection.channel)

    def get(self, name: str) -> Descriptor:
        """The index or manifest of the image; raises ImageNotFound."""
        try:
            target = self._connection.call(self._stub.Get, images_pb2.GetImageRequest(name=name)).image.target
        except ContainerdNotFound as error:
            raise ImageNotFound(
                f"containerd has no image {name!r} in namespace {self._connection.namespace!r}", hint="`ctr image ls` lists those it has"
            ) from error
        return Descriptor(target.media_type, Digest.parse(target.digest), target.size)

    def named_by(self, cid: str) -> list[str]:
        """Names of the images that were pulled by this CID."""
        request = images_pb2.ListImagesRequest(filters=[f'labels."{CID_LABEL}"=={cid}'])
        return sorted(image.name for image in self._connection.call(self._stub.List, request).images)

    def set(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> None:
        """Make the name mean ``target``, whatever it meant before."""
        image = images_pb2.Image(name=name, labels=labels, target=wire_descriptor(target))
        try:
            self._connection.call(self._stub.Create, images_pb2.CreateImageRequest(image=image))
        except AlreadyExists:
            mask = field_mask_pb2.FieldMask(paths=["target", *(f"labels.{key}" for key in labels)])
            self._connection.call(self._stub.Update, images_pb2.UpdateImageRequest(image=image, update_mask=mask))

    def delete(self, name: str) -> None:
        """Forget the name and collect what only it held; raises ContainerdNotFound."""
        self._connection.call(self._stub.Delete, images_pb2.DeleteImageRequest(name=name, sync=True))


class Containers:
    """What tasks are started from."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = ContainersStub(connection.channel)

    def exists(self, name: str) -> bool:
        """Whether there is one of that name."""
        try:
            self._connection.call(self._stub.Get, containers_pb2.GetContainerRequest(id=name))
        except ContainerdNotFound:
            return False
        return True

    def create(self, name: str, *, image: str, spec: Mapping[str, Any], snapshotter: str, labels: Mapping[str, str]) -> None:
        """Record a container whose root is the snapshot of the same name; raises AlreadyExists."""
        container = containers_pb2.Container(
            id=name,
            labels=labels,
            image=image,
            runtime=containers_pb2.Container.Runtime(name=RUNTIME),
            spec=any_pb2.Any(type_url=_SPEC_TYPE, value=json.dumps(spec).encode()),
            snapshotter=snapshotter,
            snapshot_key=name,
        )
        self._connection.call(self._stub.Create, containers_pb2.CreateContainerRequest(container=container))

    def delete(self, name: str) -> None:
        """Forget it; raises ContainerdNotFound."""
        self._connection.call(self._stub.Delete, containers_pb2.DeleteContainerRequest(id=name))
