"""An image looked at from outside: what it is made of, how much of it is here, and what a pull would fetch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

from ipfs_store.cids import DAG_CBOR, Cid, codec_of
from ipfs_store.dag.walk import reach
from ipfs_store.formats.names import ANNOTATION_TOC_DIGEST, ANNOTATION_ZSTD_POSITION, ANNOTATION_ZSTD_POSITION_OLD
from ipfs_store.images.catalog import held_images
from ipfs_store.images.identity import identify
from ipfs_store.images.local import present
from ipfs_store.images.pull import RemoteImage, RemoteLayer, resolve
from ipfs_store.images.referrers import fetch_referrers
from ipfs_store.images.root import cid_of_urls
from ipfs_store.images.usage import block_sizes
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Descriptor, Digest, Platform
from ipfs_store.oci.media_types import compression_of, is_layer

_ANNOTATION_TOC_OBJECTS = (ANNOTATION_TOC_DIGEST, ANNOTATION_ZSTD_POSITION, ANNOTATION_ZSTD_POSITION_OLD)


@dataclass(frozen=True, slots=True)
class Part:
    """Blocks of something, in all and those that are here. Bytes."""

    blocks: int
    bytes: int
    here_blocks: int
    here_bytes: int

    @property
    def missing(self) -> int:
        """Bytes to be fetched."""
        return self.bytes - self.here_bytes


@dataclass(frozen=True, slots=True)
class InspectedLayer:
    """A layer and its blocks."""

    descriptor: Descriptor
    cid: Cid
    diff_id: Digest
    format: str
    """``estargz``, ``zstd:chunked``, or for what has to be fetched whole ``tar``, ``tar+gzip``, ``tar+zstd``."""
    lazy: bool
    toc: Cid | None
    part: Part
    shared: int
    """Bytes of blocks that other layers of the image, or other images here, have too."""


@dataclass(frozen=True, slots=True)
class InspectedManifest:
    """A manifest of an image."""

    descriptor: Descriptor
    cid: Cid
    platform: Platform
    config: Descriptor
    config_cid: Cid
    layers: tuple[InspectedLayer, ...]


@dataclass(frozen=True, slots=True)
class InspectedReferrer:
    """A manifest or index that refers to the image."""

    digest: Digest
    subject: Digest
    artifact_type: str
    blobs: Mapping[Descriptor, Cid]


@dataclass(frozen=True, slots=True)
class Inspection:
    """An image."""

    cid: Cid
    name: str
    root: Cid | None
    descriptor: Descriptor
    """Of the index or manifest."""
    manifests: tuple[InspectedManifest, ...]
    referrers: tuple[InspectedReferrer, ...]
    whole: Part
    """All of its blocks."""
    lazy: Part
    """What a lazy pull fetches at once: documents and tables of contents."""
    shared: int
    """Bytes of blocks that other images here have too."""


async def inspect(node: Node, cid: Cid, *, timeout: float | None = None) -> Inspection:
    """Look at the image ``cid`` (descriptor or root): its documents and the inner blocks of its DAG are fetched, leaves are not.

    Raises what ``resolve`` raises.
    """
    image = await resolve(node, cid, platforms=None, timeout=timeout)
    identity = await identify(node, cid, timeout=timeout)
    referrers = await fetch_referrers(node, image, timeout=timeout)
    sizes = await block_sizes(node, identity.roots, timeout=timeout)
    here = await present(node, sizes)
    others: set[Cid] = set()
    for held in await held_images(node):
        if not {held.image.cid, held.root} & set(identity.roots):
            others |= held.blocks.keys()
    parts = await _Parts.of(node, image, timeout)
    measure = _Measure(sizes, here)
    content = set[Cid]()
    for layer in parts.layers.values():
        if _is_lazy(layer):  # of its blob, a mount reads the first block and what it is asked for
            content |= parts.blocks[layer.cid] - {layer.cid}
            content -= parts.blocks[layer.toc] if layer.toc is not None else set()
    owners = Counter(block for layer in parts.layers.values() for block in parts.blocks[layer.cid])
    inspected = {
        digest: InspectedLayer(
            layer.descriptor, layer.cid, layer.diff_id, _format(layer), _is_lazy(layer), layer.toc, measure.part(parts.blocks[layer.cid]),
            sum(sizes[block] for block in parts.blocks[layer.cid] if owners[block] > 1 or block in others),
        )
        for digest, layer in parts.layers.items()
    }  # fmt: skip
    manifests = tuple(
        InspectedManifest(
            manifest.descriptor, _place(image, manifest.descriptor), manifest.config.platform, manifest.config_descriptor,
            _place(image, manifest.config_descriptor), tuple(inspected[layer.descriptor.digest] for layer in manifest.layers),
        )
        for manifest in image.manifests
    )  # fmt: skip
    return Inspection(
        cid, identity.name or image.name, next((item for item in identity.roots if codec_of(item) == DAG_CBOR), None), image.descriptor,
        manifests, tuple(InspectedReferrer(item.descriptor.digest, item.subject, item.artifact_type, item.blobs) for item in referrers),
        measure.part(sizes), measure.part(sizes.keys() - content), sum(size for block, size in sizes.items() if block in others),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Parts:
    """The layers of an image, and the blocks of each and of its TOC."""

    layers: Mapping[Digest, RemoteLayer]
    blocks: Mapping[Cid, Set[Cid]]

    @classmethod
    async def of(cls, node: Node, image: RemoteImage, timeout: float | None) -> _Parts:
        async def get(cid: Cid) -> bytes:
            return await node.get(cid, timeout=timeout)

        layers = {layer.descriptor.digest: layer for manifest in image.manifests for layer in manifest.layers}
        files = {cid for layer in layers.values() for cid in (layer.cid, layer.toc) if cid is not None}
        return cls(layers, {cid: (await reach(get, [cid])).keys() for cid in files})


@dataclass(frozen=True, slots=True)
class _Measure:
    sizes: Mapping[Cid, int]
    here: Set[Cid]

    def part(self, blocks: Collection[Cid]) -> Part:
        found = [block for block in blocks if block in self.here]
        return Part(len(blocks), sum(map(self._size, blocks)), len(found), sum(map(self._size, found)))

    def _size(self, block: Cid) -> int:
        return self.sizes.get(block, 0)


def _place(image: RemoteImage, descriptor: Descriptor) -> Cid:
    known = image.root.blobs.get(descriptor.digest) if image.root is not None else None
    return cid_of_urls(descriptor) if known is None else known.cid


def _is_lazy(layer: RemoteLayer) -> bool:
    return layer.toc is not None or any(key in layer.descriptor.annotations for key in _ANNOTATION_TOC_OBJECTS)


def _format(layer: RemoteLayer) -> str:
    media_type = layer.descriptor.media_type
    if not is_layer(media_type):
        return "other"
    compression = compression_of(media_type)
    if _is_lazy(layer):
        return "zstd:chunked" if compression == "zstd" else "estargz"
    return "tar" if compression == "none" else f"tar+{compression}"
