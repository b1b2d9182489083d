"""Images that containerd has: from a name to manifest and config, each checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ipfs_store.errors import ImageNotFound, InvalidDescriptor
from ipfs_store.oci import Config, Descriptor, Digest, Index, Manifest, Platform
from ipfs_store.oci.manifest import MAX_DOCUMENT
from ipfs_store.oci.media_types import is_index, is_manifest
from ipfs_store.oci.platform import best_match, default_platform
from snapshotter.containerd.connection import Connection
from snapshotter.containerd.content import ContentStore
from snapshotter.containerd.errors import ContainerdNotFound
from snapshotter.containerd.records import Images
from snapshotter.containerd.snapshots import chain_ids

_DEEPEST = 8  # indexes within indexes


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image that containerd has, for one platform."""

    name: str
    root: Descriptor
    manifest_descriptor: Descriptor
    manifest: Manifest
    config: Config

    @property
    def chain_id(self) -> Digest | None:
        """The snapshot that a container starts from; None for an image without layers."""
        chain: Sequence[Digest] = list(chain_ids(self.config.diff_ids))
        return chain[-1] if chain else None


def local_image(connection: Connection, name: str, platform: Platform | None = None) -> LocalImage:
    """The image called ``name``; of several platforms the best for ``platform`` (None: this machine's) whose manifest is there.

    Raises ImageNotFound, BlobMismatch, InvalidDescriptor.
    """
    root = descriptor = Images(connection).get(name)
    for _ in range(_DEEPEST):
        data = document(connection, descriptor)
        if is_manifest(descriptor.media_type):
            manifest = Manifest.parse(data, where=f"manifest {descriptor.digest}", media_type=descriptor.media_type)
            config = Config.parse(document(connection, manifest.config), where=f"config {manifest.config.digest}")
            return LocalImage(name, root, descriptor, manifest, config)
        if not is_index(descriptor.media_type):
            raise InvalidDescriptor(f"image {name!r} is a {descriptor.media_type}, which is neither index nor manifest")
        index = Index.parse(data, where=f"index {descriptor.digest}", media_type=descriptor.media_type)
        descriptor = _choose(connection, name, index, platform or default_platform())
    raise InvalidDescriptor(f"image {name!r}: indexes within indexes without end")


def document(connection: Connection, descriptor: Descriptor) -> bytes:
    """A manifest, index or config; raises ImageNotFound, BlobMismatch, InvalidDescriptor (too large to be one)."""
    if descriptor.size > MAX_DOCUMENT:
        raise InvalidDescriptor(
            f"{descriptor.digest}: {descriptor.size} bytes are too many for a document of an image (at most {MAX_DOCUMENT})"
        )
    try:
        return ContentStore(connection).read(descriptor.digest, size=descriptor.size)
    except ContainerdNotFound as error:
        raise ImageNotFound(
            f"containerd does not have {descriptor.media_type} {descriptor.digest}", hint="the image is not there completely: pull it again"
        ) from error


def _choose(connection: Connection, name: str, index: Index, platform: Platform) -> Descriptor:
    # An index also lists what was not pulled; what is not there is no choice.
    store = ContentStore(connection)
    there = [item for item in index.manifests if store.has(item.digest)]
    found = best_match(platform, [item.platform for item in there])
    if found is None and len(there) == 1 and there[0].platform is None:
        found = 0
    if found is None:
        raise ImageNotFound(f"image {name!r} is not there for {platform}", hint="pull it for this platform (--platform)")
    return there[found]
