"""A whole image from a source to a target: its documents first, then each layer once, several at a time, then the documents anew."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import trio

from ipfs_store.errors import BlobMismatch, InvalidDescriptor, InvalidInput, InvalidLayer
from ipfs_store.formats.names import ANNOTATION_TOC_DIGEST, ANNOTATION_TOC_OBJECT, ROOT_ANNOTATION
from ipfs_store.images.chosen import chosen_manifests
from ipfs_store.images.conversion.tocs import TOC_SUFFIX, toc_descriptor, toc_diff_id, toc_image
from ipfs_store.images.model import Convert, ConvertedLayer, Image, Incoming, NoProgress, Progress
from ipfs_store.images.sources.incoming import open_incoming
from ipfs_store.images.targets.interface import Published, Streaming, Target
from ipfs_store.oci import Descriptor, Digest, Platform
from ipfs_store.oci.manifest import Config, Index, Manifest
from ipfs_store.oci.media_types import is_config, is_index, is_layer, is_nondistributable, to_oci
from ipfs_store.oci.platform import default_platform

_OPEN = 4  # layers that are fetched or written at a time
_CONVERTED = 2  # of those, layers that are converted: each uses all processors but for its beginning and end, and has its own memory
_DEEPEST = 16
_ALL = "all layers"


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What becomes of an image on its way."""

    platforms: tuple[Platform, ...] | None = ()
    """Which manifests of an index; empty: this machine's; None: all."""
    convert: Convert | None = None
    """None: layers stay as they are."""
    oci: bool = False
    """Docker's media types become OCI's."""


@dataclass(frozen=True, slots=True)
class LayerResult:
    """What became of a layer."""

    source: Descriptor
    descriptor: Descriptor
    converted: bool
    """False: the blob is byte for byte what it was."""
    toc: Descriptor | None = None
    """Its table of contents, where that is in an image of its own."""


@dataclass(frozen=True, slots=True)
class ConvertedImage:
    """What a conversion did."""

    root: Descriptor
    names: tuple[str, ...]
    """Of the images that are in the target now, the converted one last; the TOC image, if there is one, before it."""
    layers: tuple[LayerResult, ...]
    """Each once, in the order of the manifests."""


async def convert_image(
    image: Image, target: Target, options: ConvertOptions | None = None, progress: Progress | None = None
) -> ConvertedImage:
    """Bring ``image`` into ``target`` as ``options`` say, and commit it there.

    Layers are opened four, and converted two at a time; a layer that several manifests have is converted once. Raises what the source, the
    formats and the target raise: ImageNotFound, BlobMismatch, InvalidDescriptor, InvalidInput, InvalidLayer, StorageFailed, ...
    """
    return await _Conversion(image, target, options or ConvertOptions(), progress or NoProgress()).run()


@dataclass(frozen=True, slots=True)
class _IndexPlan:
    descriptor: Descriptor
    index: Index
    data: bytes
    items: tuple[_IndexPlan | _ManifestPlan, ...]


@dataclass(frozen=True, slots=True)
class _ManifestPlan:
    descriptor: Descriptor
    manifest: Manifest
    data: bytes
    config: Config | None
    """None: of something that is no runnable image."""
    config_data: bytes


@dataclass(frozen=True, slots=True)
class _Done:
    result: LayerResult
    diff_id: Digest | None
    """Another one than before."""


class _Conversion:
    def __init__(self, image: Image, target: Target, options: ConvertOptions, progress: Progress) -> None:
        self._progress = progress
        self._image = image
        self._target = target
        self._options = options
        self._layers: dict[Descriptor, _Done] = {}
        self._tocs: dict[Descriptor, Digest] = {}
        self._converting = trio.CapacityLimiter(_CONVERTED)
        self._new: dict[Digest, Digest] = {}

    async def run(self) -> ConvertedImage:
        plan = await self._plan(self._image.root, 0)
        if self._target.one_platform and isinstance(plan, _IndexPlan):
            raise InvalidInput(
                "a Docker archive has no place for several platforms", hint="choose one with --platform, or write an oci-archive"
            )
        found: dict[Descriptor, Digest | None] = {}
        for manifest in _manifests(plan):
            diff_ids = manifest.config.diff_ids if manifest.config is not None else (None,) * len(manifest.manifest.layers)
            for layer, diff_id in zip(manifest.manifest.layers, diff_ids, strict=True):
                found.setdefault(layer, diff_id)
        turns = [trio.Event() for _ in found]
        waiting = iter(zip(found.items(), [None, *turns], turns, strict=False))
        if len(found) > 1:
            self._progress.begin(_ALL, "convert", sum(layer.size for layer in found))
        async with trio.open_nursery() as nursery:
            for _ in range(min(_OPEN, len(found))):
                nursery.start_soon(self._worker, waiting, nursery)
        self._progress.done(_ALL)
        root, data = await self._assembled(plan)
        published = [Published(root, data)]
        if self._tocs:
            published.insert(0, await self._toc_image(next(_manifests(plan))))
        names = await self._target.commit(published)
        return ConvertedImage(root, names, tuple(self._layers[layer].result for layer in found))

    async def _plan(self, descriptor: Descriptor, depth: int) -> _IndexPlan | _ManifestPlan:
        data = await self._image.fetch(descriptor)
        if not is_index(descriptor.media_type):
            return await self._manifest_plan(descriptor, data)
        if depth == _DEEPEST:
            raise InvalidDescriptor(f"index {descriptor.digest}: indexes within indexes without end")
        index = Index.parse(data, where=f"index {descriptor.digest}", media_type=descriptor.media_type)
        chosen = chosen_manifests(index.manifests, self._options.platforms, self._image.name)
        items = tuple([await self._plan(item, depth + 1) for item in chosen])
        if self._options.platforms is not None and len(items) == 1:
            return items[0]  # one platform: the index would name what is not there
        return _IndexPlan(descriptor, index, data, items)

    async def _manifest_plan(self, descriptor: Descriptor, data: bytes) -> _ManifestPlan:
        where = f"manifest {descriptor.digest}"
        manifest = Manifest.parse(data, where=where, media_type=descriptor.media_type)
        config_data = await self._image.fetch(manifest.config)
        config = None
        if is_config(manifest.config.media_type) and any(is_layer(layer.media_type) for layer in manifest.layers):
            config = Config.parse(config_data, where=f"config {manifest.config.digest}")
            if len(config.diff_ids) != len(manifest.layers):
                raise InvalidDescriptor(f"{where}: {len(manifest.layers)} layers, and {len(config.diff_ids)} DiffIDs in its config")
        return _ManifestPlan(descriptor, manifest, data, config, config_data)

    async def _worker(
        self, waiting: Iterator[tuple[tuple[Descriptor, Digest | None], trio.Event | None, trio.Event]], nursery: trio.Nursery
    ) -> None:
        """Takes layers in order, so that the first of those that are not there yet is always at work, and none waits for one that waits."""
        for (layer, diff_id), before, done in waiting:
            async with self._layer(layer, diff_id, nursery) as put:
                if before is not None and self._target.in_order:
                    await before.wait()
                self._layers[layer] = await put()
            self._progress.advance(_ALL, layer.size)
            done.set()

    @asynccontextmanager
    async def _layer(
        self, layer: Descriptor, diff_id: Digest | None, nursery: trio.Nursery
    ) -> AsyncIterator[Callable[[], Awaitable[_Done]]]:
        """The layer in its new form; calling what the context gives puts it into the target."""
        before = self._retyped(layer)

        async def nothing() -> _Done:
            return _Done(LayerResult(layer, before, False), None)

        if is_nondistributable(layer.media_type) and layer.urls:
            yield nothing  # nobody keeps it, everybody fetches it from its URLs
            return
        plain = self._options.convert is None or diff_id is None or not is_layer(layer.media_type)
        if plain and await self._target.has(before):
            yield nothing
            return
        async with open_incoming(self._image, layer, nursery) as incoming, AsyncExitStack() as stack:
            converted = None
            if not plain:
                async with self._converting:
                    converted = await self._converted(before, incoming, stack)
            path = await incoming.checked()
            if converted is None:

                async def as_it_is() -> _Done:
                    await self._target.put_blob(before, path, diff_id=diff_id)
                    return await nothing()

                yield as_it_is
                return
            if converted.same_tar and converted.diff_id != diff_id:
                raise BlobMismatch(f"layer {layer.digest} unpacks to {converted.diff_id}, the image's config says {diff_id}")
            new = _described(before, converted)

            async def put() -> _Done:
                reused = converted.diff_id is None
                if converted.path is not None:
                    await self._target.put_blob(new, converted.path, diff_id=converted.diff_id or diff_id, given=not reused)
                else:
                    assert isinstance(self._target, Streaming) and converted.sink is not None, "it was written to the target's own"
                    await self._target.keep(new, converted.sink, diff_id=converted.diff_id)
                toc = await self._toc(new, converted.toc) if converted.toc else None
                return _Done(LayerResult(layer, new, not reused, toc), converted.diff_id)

            yield put

    async def _converted(self, layer: Descriptor, incoming: Incoming, stack: AsyncExitStack) -> ConvertedLayer | None:
        assert self._options.convert is not None, "asked before"
        sink = self._target.sink if isinstance(self._target, Streaming) else None
        try:
            return await stack.enter_async_context(self._options.convert(layer, incoming, sink))
        except (InvalidLayer, BlobMismatch):
            await incoming.checked()  # where the blob is not what it should be, or did not come, that is the reason
            raise

    async def _assembled(self, plan: _IndexPlan | _ManifestPlan) -> tuple[Descriptor, bytes]:
        if isinstance(plan, _ManifestPlan):
            return await self._manifest(plan)
        kept: list[Descriptor] = []
        for item in plan.items:
            kept.append((await self._assembled(item))[0])
        # What is about another manifest of the index (build attestations) names it by its digest.
        kept = [item.attesting(self._new) for item in kept]
        media_type = to_oci(plan.descriptor.media_type) if self._options.oci else plan.descriptor.media_type
        new = plan.index.replace(media_type=media_type, manifests=kept)
        data = plan.data if (new.media_type, new.manifests) == (plan.index.media_type, plan.index.manifests) else new.to_bytes()
        return await self._document(plan.descriptor, media_type, data)

    async def _manifest(self, plan: _ManifestPlan) -> tuple[Descriptor, bytes]:
        before = plan.manifest
        layers = [self._layers[layer] for layer in before.layers]
        config_data = plan.config_data
        if plan.config is not None:
            diff_ids = tuple(layer.diff_id or old for layer, old in zip(layers, plan.config.diff_ids, strict=True))
            if diff_ids != plan.config.diff_ids:
                config_data = plan.config.replace(diff_ids=diff_ids).to_bytes()
        config_type = to_oci(before.config.media_type) if self._options.oci else before.config.media_type
        config, _ = await self._document(before.config, config_type, config_data)
        media_type = to_oci(before.media_type) if self._options.oci else before.media_type
        descriptors = tuple(layer.result.descriptor for layer in layers)
        new = before.replace(media_type=media_type, config=config, layers=descriptors)
        same = (media_type, config, descriptors) == (before.media_type, before.config, before.layers)
        return await self._document(plan.descriptor, media_type, plan.data if same else new.to_bytes())

    async def _document(self, before: Descriptor, media_type: str, data: bytes) -> tuple[Descriptor, bytes]:
        digest = Digest.of(data)
        extra = before.extra if digest == before.digest else {key: value for key, value in before.extra.items() if key != "data"}
        new = replace(self._retyped(before), media_type=media_type, digest=digest, size=len(data), extra=extra)
        self._new[before.digest] = digest
        await self._target.put_document(new, data)
        return new, data

    def _retyped(self, descriptor: Descriptor) -> Descriptor:
        """``descriptor`` of the target's family, and without what leads into IPFS where the target is not to be told."""
        media_type = to_oci(descriptor.media_type) if self._options.oci else descriptor.media_type
        if self._target.keeps_ipfs_urls:
            return replace(descriptor, media_type=media_type)
        urls = tuple(url for url in descriptor.urls if not url.startswith("ipfs://"))
        annotations = {key: value for key, value in descriptor.annotations.items() if key not in (ANNOTATION_TOC_OBJECT, ROOT_ANNOTATION)}
        return replace(descriptor, media_type=media_type, urls=urls, annotations=annotations)

    async def _toc(self, layer: Descriptor, blob: bytes) -> Descriptor:
        toc = toc_descriptor(layer.digest, blob)
        self._tocs[toc] = await trio.to_thread.run_sync(toc_diff_id, blob)
        await self._target.put_document(toc, blob)
        return toc

    async def _toc_image(self, first: _ManifestPlan) -> Published:
        platform = first.config.platform if first.config is not None else default_platform()
        (config, config_data), (manifest, data) = toc_image(self._tocs, platform)
        await self._target.put_document(config, config_data)
        await self._target.put_document(manifest, data)
        return Published(manifest, data, TOC_SUFFIX)


def _manifests(plan: _IndexPlan | _ManifestPlan) -> Iterator[_ManifestPlan]:
    if isinstance(plan, _ManifestPlan):
        yield plan
    else:
        for item in plan.items:
            yield from _manifests(item)


def _described(before: Descriptor, converted: ConvertedLayer) -> Descriptor:
    if converted.diff_id is None:
        return replace(before, media_type=converted.media_type, annotations={**before.annotations, **converted.annotations})
    annotations = {**_without_format(before.annotations), **converted.annotations}
    return Descriptor(converted.media_type, converted.digest, converted.size, (), annotations)


def _without_format(annotations: Mapping[str, str]) -> dict[str, str]:
    """Without what told how the blob before could be read."""
    gone = (
        "io.containers.estargz.",
        "io.containers.zstd-chunked.",
        "io.github.containers.zstd-chunked.",
        ANNOTATION_TOC_DIGEST,
        ANNOTATION_TOC_OBJECT,
    )
    return {key: value for key, value in annotations.items() if not key.startswith(gone)}
