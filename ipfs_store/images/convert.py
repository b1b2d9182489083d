"""Layers on their way into a node: converted to eStargz, or cut where their members begin if they are lazily readable already."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.detached import detach
from ipfs_store.formats.layer import Layer, open_layer
from ipfs_store.formats.options import CHUNK_SIZE, WriteOptions, Written
from ipfs_store.formats.writer import write_layer
from ipfs_store.images.model import ConvertedLayer, LazyForm, NoProgress, Progress, TocObject
from ipfs_store.images.push import Convert
from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.media_types import gzip_layer


def estargz(
    *, chunk_size: int = CHUNK_SIZE, level: int | None = None, folder: Path | None = None, progress: Progress | None = None
) -> Convert:
    """A conversion to eStargz for `push.PushOptions.convert`; a layer that is lazily readable stays as it is.

    ``folder``: where the layer is unpacked and written (its uncompressed size is needed there), the system's temporary one if None.
    """
    told = progress or NoProgress()
    options = WriteOptions(chunk_size=chunk_size, level=level)

    @asynccontextmanager
    async def convert(layer: Descriptor, path: Path) -> AsyncIterator[ConvertedLayer | None]:
        if await _is_lazy(layer, path):
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="ipfs-store-", dir=folder) as name:
            target = Path(name) / "layer"
            item = str(layer.digest)
            begun = False

            def advance(count: int, total: int) -> None:
                nonlocal begun
                trio.from_thread.check_cancelled()
                if not begun:
                    told.begin(item, "convert", total)
                    begun = True
                told.advance(item, count)

            written = await trio.to_thread.run_sync(lambda: write_layer(path, target, options, advance=advance))
            told.done(item)
            yield _converted(layer, target, written)

    return convert


async def lazy_form(layer: Descriptor, path: Path) -> LazyForm | None:
    """Where the members or frames of a lazily readable layer begin, as far as its TOC says, and the TOC; None for others."""
    try:
        blob = _FileBlob(path, (await trio.Path(path).stat()).st_size)
        detached = await detach(blob, layer.annotations)
        if detached.kind == "stargz":  # no digests: nobody mounts it lazily, but its members are members
            opened = await trio.to_thread.run_sync(detached.open)
            return LazyForm(_starts(opened), None)
        opened, data = await trio.to_thread.run_sync(lambda: (detached.open(), detached.encode()))
    except InvalidLayer:
        return None
    return LazyForm(_starts(opened), TocObject(Digest.parse(detached.digest), len(detached.data), data))


def _starts(layer: Layer) -> tuple[int, ...]:
    starts = {chunk.offset for entry in layer.toc.entries for chunk in entry.chunks if chunk.end > chunk.offset}
    return tuple(sorted(starts | {0, layer.toc_offset}))


def _converted(layer: Descriptor, path: Path, written: Written) -> ConvertedLayer:
    return ConvertedLayer(
        path, gzip_layer(layer.media_type), Digest.parse(written.digest), written.size, Digest.parse(written.diff_id), written.annotations,
        written.boundaries,
    )  # fmt: skip


async def _is_lazy(layer: Descriptor, path: Path) -> bool:
    try:
        return (await _open(layer, path)).kind != "stargz"
    except InvalidLayer:
        return False  # no footer, one by chance, or a TOC that leads nowhere: converted, it will be right


@dataclass(frozen=True, slots=True)
class _FileBlob:
    path: Path
    size: int

    async def read(self, offset: int, length: int) -> bytes:
        def work() -> bytes:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(length)

        return await trio.to_thread.run_sync(work)


async def _open(layer: Descriptor, path: Path) -> Layer:
    return await open_layer(_FileBlob(path, (await trio.Path(path).stat()).st_size), layer.annotations)
