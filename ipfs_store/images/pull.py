"""From a CID to an image: descriptor, index, manifest, config, each checked against digest and size; and layers, by CID."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from ipfs_store.cids import DAG_CBOR, Cid, codec_of, format_cid
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.errors import BlobMismatch, ImageNotFound, InvalidDag, InvalidDescriptor
from ipfs_store.images.root import cid_of_urls, image_of_root
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Descriptor, Digest, Platform
from ipfs_store.oci.manifest import MAX_DOCUMENT, Config, Index, Manifest, decode_document
from ipfs_store.oci.media_types import is_index, is_manifest
from ipfs_store.oci.platform import default_platform, select

_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """A layer that lies in IPFS."""

    descriptor: Descriptor
    cid: Cid
    diff_id: Digest


@dataclass(frozen=True, slots=True)
class RemoteManifest:
    """A manifest, its config and its layers, lowest first."""

    descriptor: Descriptor
    data: bytes
    config_descriptor: Descriptor
    config_data: bytes
    config: Config
    layers: tuple[RemoteLayer, ...]


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image that lies in IPFS."""

    cid: Cid
    descriptor: Descriptor
    """Of the index or manifest."""
    indexes: tuple[tuple[Descriptor, bytes], ...]
    """Every index on the way to the manifests, the top one first."""
    manifests: tuple[RemoteManifest, ...]

    @property
    def name(self) -> str:
        """The name it was pushed under, empty if none."""
        annotations = self.descriptor.annotations
        return annotations.get("io.containerd.image.name") or annotations.get("org.opencontainers.image.ref.name", "")


async def resolve(node: Node, cid: Cid, *, platforms: Sequence[Platform] | None = (), timeout: float | None = None) -> RemoteImage:
    """Fetch and check all documents of the image that ``cid`` (its descriptor or its root) names.

    ``platforms`` chooses among the manifests of an index: empty for this machine's, None for all. ``timeout`` (seconds) holds for each block.

    Raises BlockNotFound, NodeUnavailable, InvalidDescriptor, InvalidDag, BlobMismatch, ImageNotFound (no such platform).
    """

    async def get(block: Cid) -> bytes:
        return await node.get(block, timeout=timeout)

    top = await _top(get, cid)
    indexes: list[tuple[Descriptor, bytes]] = []
    manifests: list[RemoteManifest] = []
    queue = [top]
    while queue:
        descriptor = queue.pop(0)
        data = await _document(get, descriptor)
        if is_index(descriptor.media_type):
            if len(indexes) > 16:
                raise InvalidDescriptor(f"{format_cid(cid)}: indexes within indexes without end")
            indexes.append((descriptor, data))
            queue += _chosen(Index.parse(data, media_type=descriptor.media_type), platforms, format_cid(cid))
        elif is_manifest(descriptor.media_type):
            manifests.append(await _manifest(get, descriptor, data))
        else:
            raise InvalidDescriptor(f"{format_cid(cid)} describes a {descriptor.media_type}, which is neither index nor manifest")
    return RemoteImage(cid, top, tuple(indexes), tuple(manifests))


async def copy_blob(
    node: Node, layer: RemoteLayer, write: Callable[[bytes], Awaitable[None]], *, offset: int = 0, timeout: float | None = None
) -> None:
    """Give the layer's bytes from ``offset`` to ``write``, in order, several leaves in flight; raises BlobMismatch at the end if they are wrong.

    The digest is checked when ``offset`` is 0; every block was checked against its CID in any case.
    """

    async def get(block: Cid) -> bytes:
        return await node.get(block, timeout=timeout)

    file = await UnixfsFile.open(get, layer.cid)
    if file.size != layer.descriptor.size:
        raise BlobMismatch(f"layer {layer.descriptor.digest} has {file.size} bytes in IPFS, its descriptor says {layer.descriptor.size}")
    hasher = hashlib.sha256()
    for start in range(offset, file.size, _PIECE):
        piece = await file.read(start, min(_PIECE, file.size - start))
        await trio.to_thread.run_sync(hasher.update, piece)
        await write(piece)
    if offset == 0 and hasher.hexdigest() != layer.descriptor.digest.hex:
        raise BlobMismatch(
            f"layer {format_cid(layer.cid)} has digest sha256:{hasher.hexdigest()}, its descriptor says {layer.descriptor.digest}"
        )


async def _top(get: Callable[[Cid], Awaitable[bytes]], cid: Cid) -> Descriptor:
    if codec_of(cid) == DAG_CBOR:
        return image_of_root(await get(cid))
    where = format_cid(cid)
    hint = "an image's CID is the one that ipfs-push printed"
    try:
        return Descriptor.from_json(decode_document(await _read(get, cid, where), where=where), where=where)
    except (InvalidDescriptor, InvalidDag) as error:
        raise InvalidDescriptor(f"not an image: {error.message}", hint=hint) from error


async def _document(get: Callable[[Cid], Awaitable[bytes]], descriptor: Descriptor) -> bytes:
    cid = cid_of_urls(descriptor)
    data = await _read(get, cid, str(descriptor.digest))
    if len(data) != descriptor.size or Digest.of(data) != descriptor.digest:
        raise BlobMismatch(
            f"{format_cid(cid)} has {len(data)} bytes of digest {Digest.of(data)}, and was described as {descriptor.size} bytes of {descriptor.digest}"
        )
    return data


async def _read(get: Callable[[Cid], Awaitable[bytes]], cid: Cid, where: str) -> bytes:
    file = await UnixfsFile.open(get, cid)
    if file.size > MAX_DOCUMENT:
        raise InvalidDescriptor(f"{where}: {file.size} bytes are too many for a document of an image (at most {MAX_DOCUMENT})")
    return await file.read(0, file.size)


async def _manifest(get: Callable[[Cid], Awaitable[bytes]], descriptor: Descriptor, data: bytes) -> RemoteManifest:
    where = f"manifest {descriptor.digest}"
    manifest = Manifest.parse(data, where=where, media_type=descriptor.media_type)
    config_data = await _document(get, manifest.config)
    config = Config.parse(config_data, where=f"config {manifest.config.digest}")
    if len(config.diff_ids) != len(manifest.layers):
        raise InvalidDescriptor(f"{where}: {len(manifest.layers)} layers, and {len(config.diff_ids)} DiffIDs in its config")
    layers = tuple(RemoteLayer(layer, cid_of_urls(layer), diff_id) for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True))
    return RemoteManifest(descriptor, data, manifest.config, config_data, config, layers)


def _chosen(index: Index, platforms: Sequence[Platform] | None, what: str) -> list[Descriptor]:
    if platforms is None:
        return list(index.manifests)
    wanted = tuple(platforms) or (default_platform(),)
    found = select(wanted, [item.platform for item in index.manifests])
    if not found:
        has = ", ".join(str(item.platform) for item in index.manifests if item.platform) or "none that are named"
        raise ImageNotFound(f"{what} has nothing for {', '.join(map(str, wanted))}; its platforms: {has}", hint="choose with --platform")
    return [index.manifests[position] for position in found]
