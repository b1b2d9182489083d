"""An image into a node: layers as UnixFS files, documents with ``ipfs://`` URLs on every descriptor, an image root that links it all."""

from __future__ import annotations

import mmap
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from ipfs_store.cids import Cid, format_cid
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.chunker import AS_IPFS_ADD, BY_MEMBER, MAX_LEAF, Chunker, fixed_leaves
from ipfs_store.errors import InvalidDescriptor
from ipfs_store.formats.names import ANNOTATION_TOC_OBJECT
from ipfs_store.images.chosen import chosen_manifests
from ipfs_store.images.memory import LayerMemory
from ipfs_store.images.model import Convert, ConvertedLayer, Image, NoProgress, Progress, PushedLayer, TocObject
from ipfs_store.images.root import ROOT_ANNOTATION, ImageRoot, RootBlob, RootLayer, RootManifest, RootReferrer, RootToc
from ipfs_store.images.sources.incoming import Whole
from ipfs_store.nodes.interface import Block, Node, Push
from ipfs_store.oci import Descriptor, Digest, Platform
from ipfs_store.oci.manifest import Config, Index, Manifest, encode_document
from ipfs_store.oci.media_types import is_config, is_index, is_layer

Inspect = Callable[[Descriptor, Path], Awaitable[TocObject | None]]
"""The TOC of a layer; None where it has none by which it could be read lazily."""

_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_BATCH = 4 << 20  # bytes of blocks that change threads together


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How an image is pushed."""

    platforms: tuple[Platform, ...] | None = ()
    """Which manifests of an index; empty: this machine's; None: all."""
    convert: Convert | None = None
    inspect: Inspect | None = None
    chunker: Chunker = BY_MEMBER
    """Where layers are cut into leaves."""
    own_annotations: bool = True
    """Name the image root in the descriptor, and each layer's TOC object in its own; without it both are, byte for byte, what other tools push."""
    name: str = ""
    """Name for the image instead of the source's."""
    preserve_digests: bool = False
    """Leave index, manifests, configs and layers byte for byte as they are: nothing is converted, and the root alone says where blobs are."""
    memory: LayerMemory | None = None
    """Remembers what layers became, so that those that are there already are neither fetched nor converted again."""
    referrers: bool = False
    """Bring along what refers to the image by its digest, where the source tells (`referrers.Referring`)."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did."""

    cid: Cid
    """The image CID: the descriptor's JSON."""
    root: Cid
    descriptor: Descriptor
    layers: tuple[PushedLayer, ...]
    bytes: int
    """Of all blobs."""
    new_blocks: int
    new_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: ``convert`` and ``push``, which do not overlap."""
    referrers: tuple[RootReferrer, ...] = ()


async def push_image(node: Node, image: Image, options: PushOptions | None = None, progress: Progress | None = None) -> PushResult:
    """Put ``image`` into ``node`` and pin it there: its CID under its name, its root without one.

    The same image and options give the same CID, and store nothing that is there already. Memory is bounded by some megabytes of leaves.
    Raises what the source raises, StorageFailed, NodeUnavailable; nothing is pinned then.
    """
    options = options or PushOptions()
    if options.preserve_digests:
        # Converted or cut anew, a layer has another digest; and without the root nobody would find what the manifests give no URLs of.
        options = replace(options, convert=None, own_annotations=True)
    async with node.push() as push:
        work = _Pusher(push, image, options, progress or NoProgress())
        result = await work.run()
        if work.remembered and not await push.holds(result.root):
            # Collected, damaged, or pushed into another node: what was remembered is no help.
            work = _Pusher(push, image, replace(options, memory=None), progress or NoProgress())
            result = await work.run()
        # Before the push ends: from then on a collector may take what no pin reaches.
        # The name is the CID's alone: a pin with a name has Kubo read all that it keeps.
        await node.pin(result.root)
        await node.pin(result.cid, name=work.name)
    return result


class _Pusher:
    def __init__(self, push: Push, image: Image, options: PushOptions, progress: Progress) -> None:
        self._push = push
        self._image = image
        self._options = options
        self._progress = progress
        self._layers: dict[Digest, PushedLayer] = {}
        self.remembered = False
        """Whether some layer was not brought, because it should be there already."""
        self._bytes = 0
        self.name = options.name or image.name
        self._fresh: list[tuple[Descriptor, PushedLayer]] = []
        self._indexes: list[RootBlob] = []
        self._listed: list[Descriptor] = []
        self._manifests: list[RootManifest] = []
        self._seconds = {"convert": 0.0, "push": 0.0}

    async def run(self) -> PushResult:
        start = trio.current_time()
        top = await self._index(self._image.root) if is_index(self._image.root.media_type) else await self._manifest(self._image.root)
        # Indexes are finished from the inside out; the top one comes first in the root.
        indexes = tuple(reversed(self._indexes))
        referrers = await self._referrers() if self._options.referrers else ()
        root = ImageRoot(self.name, tuple(self._manifests), indexes, referrers).encode()
        await self._push.put(root)
        names = dict.fromkeys(_NAMES, self.name) if self.name else {}
        marked = {ROOT_ANNOTATION: format_cid(root.cid)} if self._options.own_annotations else {}
        top = replace(top, annotations={**top.annotations, **names, **marked})
        cid = await self._file(encode_document(top.to_json()))
        await self._push.flush()
        if self._options.memory is not None:
            for layer, pushed in self._fresh:  # only now: they are stored
                await trio.to_thread.run_sync(self._options.memory.keep, layer, pushed)
        self._seconds["push"] = trio.current_time() - start - self._seconds["convert"]
        return PushResult(
            cid, root.cid, top, tuple(self._layers.values()), self._bytes,
            self._push.new_blocks, self._push.new_bytes, self._seconds, referrers,
        )  # fmt: skip

    async def _index(self, descriptor: Descriptor) -> Descriptor:
        data = await self._image.fetch(descriptor)
        index = Index.parse(data, media_type=descriptor.media_type)
        kept: list[Descriptor] = []
        rewritten: dict[Digest, Digest] = {}
        for item in chosen_manifests(index.manifests, self._options.platforms, self.name):
            kept.append(await self._index(item) if is_index(item.media_type) else await self._manifest(item))
            rewritten[item.digest] = kept[-1].digest
        if self._options.preserve_digests:
            pushed = await self._document(descriptor, data)
            self._listed += index.manifests
        elif self._options.platforms is not None and len(kept) == 1:
            return kept[0]  # one platform: the index would name what was not pushed
        else:
            pushed = await self._document(descriptor, index.replace(manifests=[item.attesting(rewritten) for item in kept]).to_bytes())
        self._indexes.append(RootBlob.of(pushed))
        return pushed

    async def _manifest(self, descriptor: Descriptor) -> Descriptor:
        where = f"manifest {descriptor.digest}"
        data = await self._image.fetch(descriptor)
        manifest = Manifest.parse(data, where=where, media_type=descriptor.media_type)
        config_data = await self._image.fetch(manifest.config)
        layers = [await self._layer(layer) for layer in manifest.layers]
        config, diff_ids, runs_on = await self._config(manifest, config_data, layers, where)
        described = [layer.descriptor for layer in layers]
        if not self._options.preserve_digests:
            data = manifest.replace(config=config, layers=described).to_bytes()
        pushed = await self._document(descriptor, data)
        root_layers = tuple(
            RootLayer(RootBlob.of(layer.descriptor), diff_id, layer.toc) for layer, diff_id in zip(layers, diff_ids, strict=True)
        )
        self._manifests.append(RootManifest(RootBlob.of(pushed), RootBlob.of(config), root_layers, descriptor.platform or runs_on))
        return pushed

    async def _config(
        self, manifest: Manifest, data: bytes, layers: Sequence[PushedLayer], where: str
    ) -> tuple[Descriptor, list[Digest | None], Platform | None]:
        """The config as pushed, each layer's DiffID, and what the image runs on; an artifact's config says neither."""
        if not is_config(manifest.config.media_type):
            return await self._document(manifest.config, data), [None] * len(layers), None
        config = Config.parse(data, where=f"config {manifest.config.digest}")
        if len(config.diff_ids) != len(layers):
            raise InvalidDescriptor(f"{where}: {len(layers)} layers, and {len(config.diff_ids)} DiffIDs in its config")
        diff_ids = [layer.diff_id or old for layer, old in zip(layers, config.diff_ids, strict=True)]
        if any(layer.diff_id for layer in layers):
            data = config.replace(diff_ids=diff_ids).to_bytes()
        runs_on = config.platform if config.platform.os and config.platform.architecture else None
        return await self._document(manifest.config, data), list(diff_ids), runs_on

    async def _referrers(self) -> tuple[RootReferrer, ...]:
        from ipfs_store.images.referrers import collect_referrers

        blobs = {layer.descriptor.digest: RootBlob.of(layer.descriptor) for layer in self._layers.values()}
        for manifest in self._manifests:
            blobs |= {manifest.blob.digest: manifest.blob, manifest.config.digest: manifest.config}
        found: list[RootReferrer] = []
        subjects = [*(blob.digest for blob in self._indexes), *(item.blob.digest for item in self._manifests)]
        for referrer in await collect_referrers(self._image, subjects, self._listed):
            carried = referrer.carried
            for blob in carried.blobs:
                # The same bytes under another type, as an empty config has many, are one blob of the image.
                if blob.digest in blobs:
                    continue
                if blob.digest in carried.documents:
                    blobs[blob.digest] = RootBlob.of(await self._document(blob, carried.documents[blob.digest]))
                else:
                    async with self._image.open_blob(blob) as path:
                        blobs[blob.digest] = RootBlob.of(_with_url(blob, await self._blob(blob, path, AS_IPFS_ADD)))
            document = RootBlob.of(await self._document(referrer.descriptor, referrer.data))
            parts = tuple(blobs[blob.digest] for blob in carried.blobs)
            found.append(RootReferrer(referrer.subject, document, carried.artifact_type, parts))
        return tuple(found)

    async def _layer(self, layer: Descriptor) -> PushedLayer:
        known = self._layers.get(layer.digest)
        if known is None:
            known = self._layers[layer.digest] = await self._remembered(layer) or await self._brought(layer)
        return known

    async def _remembered(self, layer: Descriptor) -> PushedLayer | None:
        memory = self._options.memory
        known = await trio.to_thread.run_sync(memory.find, layer) if memory is not None else None
        if known is not None:
            self.remembered = True
            self._bytes += known.descriptor.size
            self._progress.begin(str(layer.digest), "push", known.descriptor.size)
            self._progress.done(str(layer.digest), "known")
        return known

    async def _brought(self, layer: Descriptor) -> PushedLayer:
        async with self._image.open_blob(layer) as path:
            pushed = await self._put_layer(layer, path)
        self._fresh.append((layer, pushed))
        return pushed

    async def _put_layer(self, layer: Descriptor, path: Path) -> PushedLayer:
        if self._options.convert is not None and is_layer(layer.media_type):
            start = trio.current_time()
            async with self._options.convert(layer, Whole(path, layer.size)) as converted:
                self._seconds["convert"] += trio.current_time() - start
                if converted is not None:
                    assert converted.path is not None, "no sink of its own was asked for"
                    descriptor = Descriptor(
                        converted.media_type, converted.digest, converted.size, (), {**layer.annotations, **converted.annotations}
                    )
                    return replace(await self._store(descriptor, converted.path, converted), diff_id=converted.diff_id)
        return await self._store(layer, path, None)

    async def _store(self, layer: Descriptor, path: Path, converted: ConvertedLayer | None) -> PushedLayer:
        cid = await self._blob(layer, path, self._options.chunker if is_layer(layer.media_type) else AS_IPFS_ADD)
        toc: RootToc | None = None
        if self._options.inspect is not None and is_layer(layer.media_type):
            # Behind the blob, whose last megabytes the node takes meanwhile.
            found = await self._options.inspect(layer, path)
            toc = await self._toc(found) if found is not None else None
        if toc is not None and self._options.own_annotations:
            layer = replace(layer, annotations={**layer.annotations, ANNOTATION_TOC_OBJECT: format_cid(toc.cid)})
        return PushedLayer(_with_url(layer, cid), cid, converted is not None and converted.diff_id is not None, toc)

    async def _toc(self, toc: TocObject) -> RootToc:
        # As few leaves as may be, for whoever mounts the layer waits for all of it: one up to some 15,000 entries.
        cid = await self._put_file(fixed_leaves(memoryview(toc.data), MAX_LEAF))
        return RootToc(toc.digest, len(toc.data), toc.raw_size, cid)

    async def _blob(self, descriptor: Descriptor, path: Path, chunker: Chunker) -> Cid:
        item = str(descriptor.digest)
        self._progress.begin(item, "push", descriptor.size)
        self._bytes += descriptor.size
        with path.open("rb") as file, _Mapped(file.fileno(), descriptor.size) as data:

            def advance(count: int) -> None:
                data.forget()
                self._progress.advance(item, count)

            cid = await self._put_file(chunker.leaves(data.view), advance, inline=chunker.inline)
        self._progress.done(item, format_cid(cid))
        return cid

    async def _document(self, before: Descriptor, data: bytes) -> Descriptor:
        cid = await self._file(data)
        self._bytes += len(data)
        return _with_url(replace(before, digest=Digest.of(data), size=len(data)), cid)

    async def _file(self, data: bytes) -> Cid:
        # Documents are always cut as `ipfs add` cuts, so that their CIDs are what other tools print.
        return await self._put_file(fixed_leaves(memoryview(data)))

    async def _put_file(self, leaves: Iterable[memoryview], advance: Callable[[int], None] | None = None, *, inline: bool = False) -> Cid:
        builder = FileBuilder(inline=inline)
        blocks = _build(builder, leaves)
        while batch := await trio.to_thread.run_sync(_take, blocks):
            await self._push.put_all(batch)
            if advance is not None:
                advance(sum(len(block.data) for block in batch))
        assert builder.root is not None
        return builder.root


def _build(builder: FileBuilder, leaves: Iterable[memoryview]) -> Iterator[Block]:
    for leaf in leaves:
        for cid, data in builder.add(bytes(leaf)):
            yield Block(cid, data)
    for cid, data in builder.finish():
        yield Block(cid, data)


def _take(blocks: Iterator[Block]) -> list[Block]:
    """Up to a batch of blocks, so that hashing happens in a thread without a switch for each."""
    batch: list[Block] = []
    size = 0
    for block in blocks:
        batch.append(block)
        size += len(block.data)
        if size >= _BATCH:
            break
    return batch


class _Mapped:
    """The bytes of a file as a view, without reading them into memory; an empty file cannot be mapped."""

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else None
        self.view = memoryview(self._map or b"")

    def __enter__(self) -> _Mapped:
        return self

    def __exit__(self, *_: object) -> None:
        # Leaves are views as well; after an error some may live in its traceback, and the map is then freed with them.
        self.view.release()

    def forget(self) -> None:
        """Let go of the pages that were read, which would count as ours until the end; those that are read again are in the page cache."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def _with_url(descriptor: Descriptor, cid: Cid) -> Descriptor:
    return replace(descriptor, urls=(f"ipfs://{format_cid(cid)}",))
