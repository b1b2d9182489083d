"""Native layers: their metadata built or found, their contents served."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from ipfs_store.errors import IpfsStoreError, StorageFailed, Unavailable
from ipfs_store.formats.chunks import decode_stream
from ipfs_store.formats.footer import TocLocation
from snapshotter.cache import ChunkCache, ContentStore, on_disk
from snapshotter.dataplane.contents import ContentTree
from snapshotter.dataplane.control import Mount
from snapshotter.dataplane.keeping import ContentKeeper
from snapshotter.dataplane.layers import Blob, Counters, NativeLayer
from snapshotter.dataplane.memory import give_back
from snapshotter.dataplane.upkeep import Upkeep
from snapshotter.metadata import ContentIndex
from snapshotter.metadata.contentid import Scope, make_scope
from snapshotter.metadata.kept import IMAGE, ChainJob, Job, KeptMetadata
from snapshotter.metadata.workers import Workers

_log = logging.getLogger(__name__)
_SALT_BYTES = 32
_LONGEST_CHAIN = 32 << 20
"""Bytes of the images of a chain that is made one image: 150,000 entries, which take 220 MB and 3 seconds of a process."""
_PULL_PAUSES = 0.5
"""Seconds without another layer, after which a pull is taken to be complete: a lazy layer takes a tenth of a second."""


class Source(Protocol):
    """See `server.LayerSource`."""

    async def load_toc(self, cid: str, toc_digest: str, counters: Counters, *, toc: str = "") -> tuple[TocLocation, bytes]: ...  # noqa: D102

    def blob(self, cid: str, counters: Counters) -> Blob: ...  # noqa: D102


class NativeLayers:
    """Those that are mounted, by number. ``cache``: the folder of all that is kept; ``per_namespace``: contents are not
    shared among them; ``verify``: every content is hashed now and then, in the background."""

    def __init__(
        self,
        cache: Path,
        store: ContentStore,
        chunks: ChunkCache,
        source: Source,
        contents: ContentTree,
        generation: Callable[[], int],
        *,
        per_namespace: bool = False,
        verify: bool = False,
    ) -> None:
        self._store = store
        self._source = source
        self._contents = contents
        self._generation = generation
        self._per_namespace = per_namespace
        self._verify = verify
        self._salt = _salt(cache / "salt")
        self.kept = KeptMetadata(cache / "metadata")
        self._upkeep = Upkeep(store, chunks, self.kept)
        self._workers = Workers()
        self._building: dict[str, trio.Lock] = {}
        self._chains: list[ChainJob] = []
        """To be made."""
        self._asked = trio.Event()

    def __iter__(self) -> Iterator[NativeLayer]:
        return iter(list(self._contents.layers.values()))

    def __contains__(self, number: int) -> bool:
        return any(number in layer.numbers for layer in self)

    @property
    def no_verity(self) -> str:
        """Why files are not sealed by fs-verity; empty: they are."""
        return self._upkeep.soundness.no_verity

    def scope(self, namespace: str) -> Scope:
        """Who shares contents with layers that containerd's ``namespace`` asked for."""
        return make_scope(self._salt, namespace if self._per_namespace else "")

    async def prepare(self) -> None:
        """Before anything is mounted: see `Upkeep.prepare`."""
        await trio.to_thread.run_sync(self._upkeep.prepare)

    async def run(self) -> None:
        """Run for ever: keep a builder warm, and the store in order."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._upkeep.run)
                nursery.start_soon(partial(self._upkeep.soundness.run, everything=self._verify))
                nursery.start_soon(self._make_chains)
                await self._workers.warm()
        finally:
            with trio.CancelScope(shield=True):
                await self._workers.aclose()

    async def mount(self, request: Mount) -> Path:
        """The metadata image, ready; from then on the layer's contents are served. At once, without the network, if its metadata are kept.

        Raises IpfsStoreError.
        """
        scope = self.scope(request.namespace)
        name = request.toc_digest or request.cid
        folder = self.kept.folder_of(name, scope)
        there = next((layer for layer in self if request.layer in layer.numbers), None)
        if there is not None and there.key != folder.name:
            raise StorageFailed(f"layer {request.layer} is mounted from {there.cid} already; unmount it before it becomes {request.cid}")
        counters = Counters()
        async with self._building.setdefault(folder.name, trio.Lock()):
            layer = self._contents.layers.get(folder.name)
            if layer is None:
                index = await self._find_or_build(request, name, scope, counters)
                layer = self._contents.layers[folder.name] = self._layer(request, folder.name, scope, index, counters)
            layer.numbers.add(request.layer)
        return folder / IMAGE

    async def chain(self, numbers: Sequence[int]) -> Path | None:
        """One metadata image for these layers, the lowest first, whiteouts applied; None where it is not there yet, and made now.

        A pull asks again for each layer that it brings: only the last of such chains is made. Raises StorageFailed.
        """
        by_number = {number: layer for layer in self for number in layer.numbers}
        missing = [number for number in numbers if number not in by_number]
        if missing or not numbers:
            raise StorageFailed(f"layer {missing[0] if missing else 'of nothing'} is not mounted natively, and cannot be part of a chain")
        images = tuple(self.kept.folder / by_number[number].key / IMAGE for number in numbers)
        job = ChainJob(self.kept.folder_of_chain(images), images)
        if await trio.to_thread.run_sync(self.kept.has, job.folder):
            return job.folder / IMAGE
        size = await trio.to_thread.run_sync(lambda: sum(image.stat().st_size for image in images))
        if size > _LONGEST_CHAIN:
            raise StorageFailed(f"their metadata have {size:,} bytes, and more than {_LONGEST_CHAIN:,} are not merged")
        if job not in self._chains:
            self._chains = [other for other in self._chains if other.images != images[: len(other.images)]] + [job]
            self._asked.set()
        return None

    async def _make_chains(self) -> None:
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            with trio.move_on_after(_PULL_PAUSES) as pause:
                await self._asked.wait()
            if not pause.cancelled_caught:
                continue
            while self._chains:
                job = self._chains[0]
                try:
                    await self._workers.run(job)
                except IpfsStoreError as error:
                    _log.warning("no image is made of %s, which stays a stack of them: %s", job.layer, error.message)
                else:
                    await trio.to_thread.run_sync(self._count, job.folder)
                self._chains = [other for other in self._chains if other != job]

    def _count(self, folder: Path) -> None:
        self._store.room.counted(sum(on_disk(path.stat().st_size) for path in folder.iterdir()))

    def unmount(self, number: int) -> str:
        """Stop serving the layer, unless it has another number too; its key if it is served no more."""
        for key, layer in list(self._contents.layers.items()):
            layer.numbers.discard(number)
            if not layer.numbers:
                del self._contents.layers[key]
                self.kept.touch(key)
                return key
        return ""

    async def _find_or_build(self, request: Mount, name: str, scope: Scope, counters: Counters) -> ContentIndex:
        kept = await trio.to_thread.run_sync(self.kept.find, name, scope)
        if kept is None:
            with trio.move_on_after(request.timeout) as allowed:
                location, toc = await self._source.load_toc(request.cid, request.toc_digest, counters, toc=request.toc)
                await self._workers.run(Job(self.kept.folder_of(name, scope), location, toc, scope, name))
            if allowed.cancelled_caught:
                raise Unavailable(f"the TOC of {request.cid} did not come within {request.timeout:g} s")
            kept = await trio.to_thread.run_sync(self.kept.find, name, scope)
            if kept is not None:
                self._count(kept[0].parent)
                await trio.to_thread.run_sync(give_back)  # the TOC: 8 MB for 30,000 files, several times over
            if kept is None:
                raise StorageFailed(f"the metadata of {request.cid} were built in {self.kept.folder}, and are gone")
        return kept[1]

    def _layer(self, request: Mount, key: str, scope: Scope, index: ContentIndex, counters: Counters) -> NativeLayer:
        _log.info("layer %d: %s (ipfs://%s), %d entries, native", request.layer, request.digest, request.cid, index.nodes)
        return NativeLayer(
            generation=self._generation(),
            cid=request.cid,
            digest=request.digest,
            toc_digest=request.toc_digest,
            table=index,
            blob=self._source.blob(request.cid, counters),
            decode=partial(decode_stream, index.kind),
            counters=counters,
            keeper=ContentKeeper(self._store, index),
            content=index.content,
            scope=scope,
            index=index,
            key=key,
        )


def _salt(path: Path) -> bytes:
    """The machine's own secret, made at the first start; raises StorageFailed.

    One that a power failure took is made anew: what was kept under its ids is found by nobody then, and is evicted.
    """
    try:
        if not path.exists() or path.stat().st_size != _SALT_BYTES:
            part = path.with_suffix(".part")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.touch(mode=0o600)
            with part.open("wb") as file:
                file.write(secrets.token_bytes(_SALT_BYTES))
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        return path.read_bytes()
    except OSError as error:
        raise StorageFailed(f"{path} cannot be read or made: {error.strerror}") from error
