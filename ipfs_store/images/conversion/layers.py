"""Layers rewritten in another format, or left as they are where they have it already; for whoever converts or pushes images."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from ipfs_store.errors import InvalidInput, InvalidLayer
from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.detached import detach
from ipfs_store.formats.footer import locate_toc
from ipfs_store.formats.layer import Layer, open_layer
from ipfs_store.formats.limits import TAIL
from ipfs_store.formats.names import (
    ANNOTATION_TOC_DIGEST,
    ANNOTATION_ZSTD_CHECKSUM,
    ANNOTATION_ZSTD_CHECKSUM_OLD,
    ANNOTATION_ZSTD_POSITION_OLD,
    GZIP_MAGIC,
    ZSTD_MAGIC,
    ZSTD_SKIPPABLE_MAGIC,
    Kind,
)
from ipfs_store.formats.options import Format, WriteOptions, Written
from ipfs_store.formats.writer import write_layer_to
from ipfs_store.images.model import Convert, ConvertedLayer, Incoming, MakeSink, NoProgress, Progress, Sink, TocObject
from ipfs_store.images.sources.options import scratch_folder
from ipfs_store.images.sources.ranges import FileBlob
from ipfs_store.images.sources.scratch import Scratch, storage_failed
from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.media_types import DOCKER_TYPES, Compression, recompressed

_KIND: dict[Format, Kind] = {"estargz": "estargz", "zstd:chunked": "zstd:chunked"}
_SAYING = (ANNOTATION_TOC_DIGEST, ANNOTATION_ZSTD_CHECKSUM, ANNOTATION_ZSTD_CHECKSUM_OLD)


def layer_converter(
    options: WriteOptions, *, reuse: Collection[Kind] | None = None, folder: Path | None = None, progress: Progress | None = None
) -> Convert:
    """A conversion of layers as ``options`` say, for `push.PushOptions` and `conversion.ConvertOptions`.

    ``reuse``: formats of which a layer, whose TOC is read and has to be sound, stays byte for byte as it is; None: the one of ``options``.
    ``folder``: where a layer is written, in a file without a name; None: `scratch_folder`.
    """
    told = progress or NoProgress()
    where = folder or scratch_folder()
    kept = {kind for kind in (_KIND.get(options.format),) if kind} if reuse is None else set(reuse)

    @asynccontextmanager
    async def convert(layer: Descriptor, source: Incoming, sink: MakeSink | None = None, /) -> AsyncIterator[ConvertedLayer | None]:
        if options.compression == "zstd" and layer.media_type in DOCKER_TYPES:
            raise InvalidInput(f"layer {layer.digest}: Docker's media types have no zstd", hint="make them OCI's: ipfs-store convert --oci")
        if options.format == "tar" and not await _is_compressed(source):
            yield _reused(layer, await source.checked(), "none", {})
            return
        if (found := await _lazy(layer, source.ranges)) is not None and found.kind in kept:
            path = await source.checked()
            said = any(key in layer.annotations for key in _SAYING)
            compression: Compression = "zstd" if found.kind == "zstd:chunked" else "gzip"
            yield _reused(layer, path, compression, {} if said else await _annotations(found, path))
            return
        item = str(layer.digest)
        begun = False

        def advance(count: int, total: int) -> None:
            nonlocal begun
            trio.from_thread.check_cancelled()
            if not begun:
                told.begin(item, "convert", total)
                begun = True
            told.advance(item, count)

        def work(target: Sink) -> Written:
            try:
                written = write_layer_to(source, target.file, where, options, advance=advance)
            except OSError as error:
                raise storage_failed(error, where) from error
            target.flush()
            return written

        target = await trio.to_thread.run_sync(sink or partial(Scratch, where))  # without a name: however we end, nothing is left
        try:
            written = await trio.to_thread.run_sync(work, target)
            told.done(item)
            same_tar = options.keep_diff_id or options.format in ("tar", "gzip", "zstd")
            yield _converted(layer, target, written, same_tar=same_tar)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(target.close)

    return convert


async def lazy_form(layer: Descriptor, path: Path) -> TocObject | None:
    """The TOC of a lazily readable layer as an object of its own; None for others (legacy stargz has no digests: nobody mounts it lazily)."""
    try:
        detached = await detach(await FileBlob.open(path), layer.annotations)
    except InvalidLayer:
        return None
    if detached.kind == "stargz":
        return None
    data = await trio.to_thread.run_sync(detached.encode)
    return TocObject(Digest.parse(detached.digest), len(detached.data), data)


def _reused(layer: Descriptor, path: Path, compression: Compression, annotations: Mapping[str, str]) -> ConvertedLayer | None:
    """The blob as it is, with what its descriptor lacks; None where that lacks nothing."""
    media_type = recompressed(layer.media_type, compression)  # some tools name another than the blob has
    if media_type == layer.media_type and not annotations:
        return None
    return ConvertedLayer(path, media_type, layer.digest, layer.size, None, annotations)


def _converted(layer: Descriptor, sink: Sink, written: Written, *, same_tar: bool) -> ConvertedLayer:
    return ConvertedLayer(
        sink.path, recompressed(layer.media_type, written.compression or "none"), Digest.parse(written.digest), written.size,
        Digest.parse(written.diff_id), written.annotations, written.toc, same_tar, sink,
    )  # fmt: skip


async def _lazy(layer: Descriptor, blob: RangeReader) -> Layer | None:
    try:
        return await open_layer(blob, layer.annotations)
    except InvalidLayer:
        return None  # no footer, one by chance, or a TOC that leads nowhere: converted, it will be right


async def _annotations(layer: Layer, path: Path) -> Mapping[str, str]:
    """What stargz-snapshotter looks for at a layer of this kind, as far as its blob tells: archives of Docker lose annotations."""
    found = {ANNOTATION_TOC_DIGEST: layer.toc.digest}
    if layer.kind == "zstd:chunked":
        blob = await FileBlob.open(path)
        location = locate_toc(await blob.read(max(blob.size - TAIL, 0), min(blob.size, TAIL)), blob.size, {})
        compressed = await blob.read(location.offset, location.length)
        found[ANNOTATION_ZSTD_CHECKSUM_OLD] = str(Digest.of(compressed))
        found[ANNOTATION_ZSTD_POSITION_OLD] = f"{location.offset}:{location.length}:{location.raw_length or 0}:1"
    return found


async def _is_compressed(layer: Incoming) -> bool:
    magic = await layer.ranges.read(0, min(4, layer.size))
    return magic[:2] == GZIP_MAGIC or magic == ZSTD_MAGIC or (b"\x50" <= magic[:1] <= b"\x5f" and magic[1:] == ZSTD_SKIPPABLE_MAGIC[1:])
