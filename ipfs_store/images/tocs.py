"""The tables of contents of an image's layers, wherever image and tables are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from ipfs_store.cids import DAG_CBOR, Cid, codec_of
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.errors import IpfsStoreError, NotSeekable
from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.detached import detach
from ipfs_store.formats.layer import load_toc
from ipfs_store.formats.names import ANNOTATION_EXTERNAL_TOC_LAYER, ANNOTATION_TOC_DIGEST
from ipfs_store.images.chosen import chosen_manifests
from ipfs_store.images.conversion.tocs import TOC_SUFFIX
from ipfs_store.images.model import Image
from ipfs_store.images.sources import SourceOptions, open_image
from ipfs_store.images.sources.ranges import open_ranges
from ipfs_store.images.targets.interface import with_suffix
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Descriptor, Digest, Index, Manifest, Platform
from ipfs_store.oci.manifest import MAX_DOCUMENT
from ipfs_store.oci.media_types import is_index, is_layer


@dataclass(frozen=True, slots=True)
class LayerToc:
    """A layer's table of contents."""

    layer: Digest | None
    """None: of a blob that nobody described."""
    digest: str
    """``sha256:...`` of the TOC; empty where the layer has none."""
    data: bytes = field(default=b"", repr=False)
    """The TOC's JSON as it stands in the layer."""


async def blob_toc(blob: RangeReader, annotations: Mapping[str, str] | None = None) -> LayerToc:
    """That of a blob by itself; raises NotSeekable, InvalidLayer, TocMismatch, and what ``blob`` raises."""
    found = await detach(blob, annotations or {})
    await trio.to_thread.run_sync(found.open)  # it has to be sound
    return LayerToc(None, found.digest, found.data)


async def image_tocs(text: str, options: SourceOptions, platform: Platform | None = None) -> list[LayerToc]:
    """Those of all layers, lowest first, of the image that ``text`` names; one platform of several (None: this machine's).

    Only the tables are fetched where the source can, and the layer's descriptor says which digest they have. One in an image of its own is
    looked for under the same tag with ``-esgztoc``. Raises what sources raise, InvalidLayer, TocMismatch.
    """
    async with open_image(text, options=options) as image, AsyncExitStack() as stack:
        external: _External | None = None
        found: list[LayerToc] = []
        for layer in (await _manifest(image, platform)).layers:
            if not is_layer(layer.media_type):
                continue
            named = layer.annotations.get(ANNOTATION_TOC_DIGEST)
            async with open_ranges(image, layer, checked=not named) as blob:
                try:
                    toc = await blob_toc(blob, layer.annotations)
                except NotSeekable:
                    if named is None:
                        found.append(LayerToc(layer.digest, ""))
                        continue
                    if external is None:
                        external = await stack.enter_async_context(_external(text, image, options))
                    async with external.open(layer) as table:
                        _, data = await load_toc(blob, layer.annotations, external_toc=table)
                    toc = LayerToc(None, str(Digest.of(data)), data)
                found.append(replace(toc, layer=layer.digest))
        return found


async def is_image(node: Node, cid: Cid) -> bool:
    """Whether what ``cid`` names is an image's descriptor or root, and no layer; raises BlockNotFound, NodeUnavailable, InvalidDag."""
    if codec_of(cid) == DAG_CBOR:
        return True
    file = await UnixfsFile.open(node.get, cid)
    return 0 < file.size <= MAX_DOCUMENT and await file.read(0, 1) == b"{"


async def _manifest(image: Image, platform: Platform | None) -> Manifest:
    descriptor = image.root
    while is_index(descriptor.media_type):
        index = Index.parse(await image.fetch(descriptor), media_type=descriptor.media_type)
        descriptor = chosen_manifests(index.manifests, (platform,) if platform is not None else (), image.name)[0]
    return Manifest.parse(await image.fetch(descriptor), media_type=descriptor.media_type)


class _External:
    """The TOC image beside an image."""

    def __init__(self, image: Image, layers: Mapping[str, Descriptor]) -> None:
        self._image = image
        self._layers = layers

    @asynccontextmanager
    async def open(self, layer: Descriptor) -> AsyncIterator[RangeReader]:
        """The TOC's blob of ``layer``; raises NotSeekable where there is none."""
        toc = self._layers.get(str(layer.digest))
        if toc is None:
            raise NotSeekable(f"the TOC of layer {layer.digest} is in no layer of the image with {TOC_SUFFIX!r}")
        async with open_ranges(self._image, toc, checked=True) as blob:
            yield blob


@asynccontextmanager
async def _external(text: str, image: Image, options: SourceOptions) -> AsyncIterator[_External]:
    reference = getattr(image, "reference", None)
    beside = f"docker://{with_suffix(str(reference), TOC_SUFFIX)}" if reference is not None else f"{text}{TOC_SUFFIX}"
    async with AsyncExitStack() as stack:
        try:
            tocs = await stack.enter_async_context(open_image(beside, options=options))
        except IpfsStoreError as error:
            raise NotSeekable(f"the layers' TOCs are in an image of their own, and that cannot be opened: {error.message}") from error
        manifest = await _manifest(tocs, None)
        yield _External(tocs, {toc.annotations.get(ANNOTATION_EXTERNAL_TOC_LAYER, ""): toc for toc in manifest.layers})
