"""From a CID to an image: descriptor, index, manifest, config, each checked against digest and size; and layers, by CID."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import trio

from ipfs_store.cids import DAG_CBOR, Cid, codec_of, format_cid, parse_cid
from ipfs_store.dag.file import GetBlock, UnixfsFile
from ipfs_store.errors import BlobMismatch, InvalidDag, InvalidDescriptor
from ipfs_store.formats.names import ANNOTATION_TOC_OBJECT
from ipfs_store.images.chosen import chosen_manifests
from ipfs_store.images.root import ROOT_ANNOTATION, ImageRoot, cid_of_urls, decode_root
from ipfs_store.nodes.interface import Blocks
from ipfs_store.oci import Descriptor, Digest, Platform
from ipfs_store.oci.manifest import MAX_DOCUMENT, Config, Index, Manifest, decode_document
from ipfs_store.oci.media_types import is_index, is_manifest

_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """A layer that lies in IPFS."""

    descriptor: Descriptor
    cid: Cid
    diff_id: Digest
    toc: Cid | None = None
    """Its table of contents as an object of its own (`formats.detached`), where it has one."""

    @property
    def located(self) -> Descriptor:
        """The descriptor with URL and TOC object, whether the manifest has them or the image root does."""
        toc = {ANNOTATION_TOC_OBJECT: format_cid(self.toc)} if self.toc is not None else {}
        return replace(self.descriptor, urls=(f"ipfs://{format_cid(self.cid)}",), annotations={**self.descriptor.annotations, **toc})


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
    root: ImageRoot | None = None
    """The image root, where the image was asked for by it, or could not be found without it."""

    @property
    def name(self) -> str:
        """The name it was pushed under, empty if none."""
        if self.root is not None and self.root.name:
            return self.root.name
        return name_of(self.descriptor)


def name_of(descriptor: Descriptor) -> str:
    """The name that an image's descriptor says it was pushed under, empty if none."""
    annotations = descriptor.annotations
    return annotations.get("io.containerd.image.name") or annotations.get("org.opencontainers.image.ref.name", "")


async def resolve(node: Blocks, cid: Cid, *, platforms: Sequence[Platform] | None = (), timeout: float | None = None) -> RemoteImage:
    """Fetch and check all documents of the image that ``cid`` (its descriptor or its root) names.

    ``platforms`` chooses among the manifests of an index: empty for this machine's, None for all. ``timeout`` (seconds) holds for each block.

    Raises BlockNotFound, NodeUnavailable, InvalidDescriptor, InvalidDag, BlobMismatch, ImageNotFound (no such platform).
    """

    async def get(block: Cid) -> bytes:
        return await node.get(block, timeout=timeout)

    places, top = await find_image(get, cid)
    indexes: list[tuple[Descriptor, bytes]] = []
    manifests: list[RemoteManifest] = []
    queue = [top]
    while queue:
        descriptor = queue.pop(0)
        data = await places.document(descriptor)
        if is_index(descriptor.media_type):
            if len(indexes) > 16:
                raise InvalidDescriptor(f"{format_cid(cid)}: indexes within indexes without end")
            indexes.append((descriptor, data))
            listed = await places.pushed(Index.parse(data, media_type=descriptor.media_type).manifests)
            queue += chosen_manifests(listed, platforms, format_cid(cid))
        elif is_manifest(descriptor.media_type):
            manifests.append(await places.manifest(descriptor, data))
        else:
            raise InvalidDescriptor(f"{format_cid(cid)} describes a {descriptor.media_type}, which is neither index nor manifest")
    return RemoteImage(cid, top, tuple(indexes), tuple(manifests), places.root)


async def fetch_root(get: GetBlock, cid: Cid) -> ImageRoot:
    """The image root ``cid``; raises what ``get`` raises, and InvalidDag, naming the CID."""
    try:
        return decode_root(await get(cid))
    except InvalidDag as error:
        raise InvalidDag(f"{format_cid(cid)}: {error.message}", hint=error.hint) from error


async def copy_blob(
    node: Blocks, layer: RemoteLayer, write: Callable[[bytes], Awaitable[None]], *, offset: int = 0, timeout: float | None = None
) -> None:
    """Give a layer's bytes to ``write``; see `copy_file`."""
    await copy_file(node, layer.descriptor, layer.cid, write, offset=offset, timeout=timeout)


async def copy_file(
    node: Blocks, descriptor: Descriptor, cid: Cid, write: Callable[[bytes], Awaitable[None]], *, offset: int = 0,
    timeout: float | None = None,
) -> None:  # fmt: skip
    """Give a blob's bytes from ``offset`` to ``write``, in order, several leaves in flight; raises BlobMismatch at the end if they are wrong.

    The digest is checked when ``offset`` is 0; every block was checked against its CID in any case.
    """

    async def get(block: Cid) -> bytes:
        return await node.get(block, timeout=timeout)

    file = await UnixfsFile.open(get, cid)
    if file.size != descriptor.size:
        raise BlobMismatch(f"blob {descriptor.digest} has {file.size} bytes in IPFS, its descriptor says {descriptor.size}")
    hasher = hashlib.sha256()
    for start in range(offset, file.size, _PIECE):
        piece = await file.read(start, min(_PIECE, file.size - start))
        await trio.to_thread.run_sync(hasher.update, piece)
        await write(piece)
    if offset == 0 and hasher.hexdigest() != descriptor.digest.hex:
        raise BlobMismatch(f"blob {format_cid(cid)} has digest sha256:{hasher.hexdigest()}, its descriptor says {descriptor.digest}")


async def fetch_document(get: GetBlock, descriptor: Descriptor, cid: Cid) -> bytes:
    """An index, manifest or config, checked; raises BlobMismatch, InvalidDescriptor (too large), and what ``get`` raises."""
    data = await _read(get, cid, str(descriptor.digest))
    if len(data) != descriptor.size or Digest.of(data) != descriptor.digest:
        raise BlobMismatch(
            f"{format_cid(cid)} has {len(data)} bytes of digest {Digest.of(data)}, "
            f"and was described as {descriptor.size} bytes of {descriptor.digest}"
        )
    return data


async def find_image(get: GetBlock, cid: Cid) -> tuple[Places, Descriptor]:
    """The index or manifest of the image ``cid`` (its descriptor or its root), and who knows where its blobs are; nothing else is fetched.

    Raises InvalidDescriptor, InvalidDag, and what ``get`` raises.
    """
    if codec_of(cid) == DAG_CBOR:
        root = await fetch_root(get, cid)
        return Places(get, root, None), root.image.descriptor
    where = format_cid(cid)
    hint = "an image's CID is the one that ipfs-push printed"
    try:
        top = Descriptor.from_json(decode_document(await _read(get, cid, where), where=where), where=where)
    except (InvalidDescriptor, InvalidDag) as error:
        raise InvalidDescriptor(f"not an image: {error.message}", hint=hint) from error
    named = top.annotations.get(ROOT_ANNOTATION)
    return Places(get, None, parse_cid(named) if named else None), top


class Places:
    """Where an image's blobs are: as its root says where there is one, else as the URL of each descriptor says."""

    def __init__(self, get: GetBlock, root: ImageRoot | None, named: Cid | None) -> None:
        self._get = get
        self.root = root
        self._named = named  # the root that the image's descriptor names: fetched only for what has no URL

    async def pushed(self, manifests: Sequence[Descriptor]) -> list[Descriptor]:
        """Those of an index that are in IPFS: one that was left as it was names platforms that were not pushed."""
        if all(map(_has_url, manifests)):
            return list(manifests)
        await self._fetch_root()
        parts = (*self.root.indexes, *(manifest.blob for manifest in self.root.manifests)) if self.root is not None else ()
        known = {blob.digest for blob in parts}
        return [item for item in manifests if _has_url(item) or item.digest in known]

    async def find(self, descriptor: Descriptor) -> Cid:
        """The blob's CID; raises InvalidDescriptor where nobody says."""
        if not _has_url(descriptor):
            await self._fetch_root()
        if self.root is not None and (blob := self.root.blobs.get(descriptor.digest)) is not None:
            if blob.size != descriptor.size:
                raise InvalidDag(f"the image root says that {blob.digest} has {blob.size} bytes, its descriptor says {descriptor.size}")
            return blob.cid
        return cid_of_urls(descriptor)

    async def _fetch_root(self) -> None:
        if self.root is None and self._named is not None:
            self.root = await fetch_root(self._get, self._named)

    async def document(self, descriptor: Descriptor) -> bytes:
        """An index, manifest or config, checked."""
        return await fetch_document(self._get, descriptor, await self.find(descriptor))

    async def manifest(self, descriptor: Descriptor, data: bytes) -> RemoteManifest:
        """A manifest with its config; raises InvalidDescriptor."""
        where = f"manifest {descriptor.digest}"
        manifest = Manifest.parse(data, where=where, media_type=descriptor.media_type)
        config_data = await self.document(manifest.config)
        config = Config.parse(config_data, where=f"config {manifest.config.digest}")
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidDescriptor(f"{where}: {len(manifest.layers)} layers, and {len(config.diff_ids)} DiffIDs in its config")
        layers = [await self._layer(layer, diff_id) for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)]
        return RemoteManifest(descriptor, data, manifest.config, config_data, config, tuple(layers))

    async def _layer(self, layer: Descriptor, diff_id: Digest) -> RemoteLayer:
        cid = await self.find(layer)
        toc: Cid | None = None
        if named := layer.annotations.get(ANNOTATION_TOC_OBJECT):
            toc = parse_cid(named)
        elif self.root is not None:
            known = next((item.toc for item in self.root.layers if item.blob.digest == layer.digest), None)
            toc = known.cid if known is not None else None
        return RemoteLayer(layer, cid, diff_id, toc)


def _has_url(descriptor: Descriptor) -> bool:
    return any(url.startswith("ipfs://") for url in descriptor.urls)


async def _read(get: GetBlock, cid: Cid, where: str) -> bytes:
    file = await UnixfsFile.open(get, cid)
    if file.size > MAX_DOCUMENT:
        raise InvalidDescriptor(f"{where}: {file.size} bytes are too many for a document of an image (at most {MAX_DOCUMENT})")
    return await file.read(0, file.size)
