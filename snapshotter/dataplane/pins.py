"""Layers that are kept whole: fetched in the background, and left alone by eviction for as long as they are mounted and wanted.

A pin is a file, ``FOLDER/KEY`` with the names for which the layer was pinned, and is on the disk before anybody is told of it. It ends with
`Pins.unpin` for the last of its names, or when the layer is unmounted.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfs_store.errors import InvalidInput, IpfsStoreError, StorageFailed
from snapshotter.cache import Room
from snapshotter.dataplane.layers import MountedLayer, NativeLayer
from snapshotter.dataplane.reader import ChunkReader
from snapshotter.scheduler import Priority

_log = logging.getLogger(__name__)

Pinnable = MountedLayer | NativeLayer
AT_A_TIME = 4
"""Spans: a link of 200 Mbit/s is full by them, and readers, who go first, find the processors free."""
_SPAN = 1 << 20
"""Bytes of the blob that are asked for together."""
_AGAIN = 30.0
"""Seconds after which what failed is tried again."""
_LOOK = 600.0
"""Seconds after which what was complete is looked at again: a file may have been found damaged."""


@dataclass(slots=True)
class Pin:
    """How far a pinned layer is. Bytes on disk."""

    left: int | None = None
    """What is missing; None before that is known."""
    error: str = ""
    """Why it is not complete."""


class Pins:
    """Those that are in ``folder``, which is made when it is needed. ``mounted``: the layers that are mounted now."""

    def __init__(
        self, folder: Path, room: Room, reader: ChunkReader, threads: trio.CapacityLimiter, mounted: Callable[[], Iterable[Pinnable]]
    ) -> None:
        self._folder = folder
        self._room = room
        self._reader = reader
        self._threads = threads
        self._mounted = mounted
        self._wake = trio.Event()
        self._names: dict[str, set[str]] = {}
        self._state: dict[str, Pin] = {}
        for path in folder.iterdir() if folder.exists() else ():
            if path.name.startswith("."):
                continue  # half-written when a process was killed
            try:
                self._names[path.name] = set(json.loads(path.read_text()))
            except (OSError, ValueError, TypeError) as error:
                _log.error("%s cannot be read (%s): pin the image again", path, error)

    @property
    def keys(self) -> frozenset[str]:
        """Of the layers that are pinned, mounted or not."""
        return frozenset(self._names)

    def of(self, layer: Pinnable) -> Pin | None:
        """How far the layer is; None if it is not pinned."""
        return self._state.setdefault(layer.key, Pin()) if layer.key in self._names else None

    async def pin(self, name: str, layers: Sequence[Pinnable]) -> None:
        """Keep these whole, for ``name``; they are fetched from now on. Raises StorageFailed if they cannot all fit."""
        wanted = {layer.key: layer for layer in [*self._pinned(), *layers]}
        total = 0
        for layer in wanted.values():
            total += (await trio.to_thread.run_sync(layer.keeper.missing)).total
        most = self._room.could_take()
        if total > most:
            raise StorageFailed(
                f"what is pinned would take {total:,} bytes, and the cache can take {most:,}",
                hint="allow it more (cache.max_bytes, cache.reserve), or unpin another image",
            )
        for key in {layer.key for layer in layers}:
            self._note(key, self._names.get(key, set()) | {name})
        self._room.retry()
        self.look()

    def unpin(self, name: str, layers: Sequence[Pinnable]) -> None:
        """Let go of those that are pinned for nobody else. Raises InvalidInput (none is pinned for ``name``), StorageFailed."""
        names = set().union(*(self._names.get(layer.key, ()) for layer in layers))
        if name not in names:
            known = f"it is pinned as {', '.join(sorted(names))}" if names else "it is not pinned at all"
            raise InvalidInput(f"nothing is pinned as {name!r}", hint=known)
        for key in {layer.key for layer in layers}:
            if key in self._names:
                self._note(key, self._names[key] - {name})

    def forget(self, key: str) -> None:
        """The layer is gone. Raises StorageFailed."""
        if key in self._names:
            self._note(key, set())

    def look(self) -> None:
        """A layer was mounted, or pinned: see what is missing."""
        self._wake.set()

    async def run(self) -> None:
        """Run for ever: fetch what is missing."""
        while True:
            self._wake = trio.Event()
            for layer in self._pinned():
                await self._fill(layer)
            failed = any(pin.error for pin in self._state.values())
            with trio.move_on_after(_AGAIN if failed else _LOOK):
                await self._wake.wait()

    def _pinned(self) -> list[Pinnable]:
        return [layer for layer in self._mounted() if layer.key in self._names]

    async def _fill(self, layer: Pinnable) -> None:
        pin = self.of(layer)
        assert pin is not None
        before = pin.error, pin.left
        try:
            missing = await trio.to_thread.run_sync(layer.keeper.missing)
            pin.left = missing.left
            if missing.chunks:
                await self._fetch(layer, _spans(layer, missing.chunks), pin)
                await self._fetch(layer, await trio.to_thread.run_sync(layer.keeper.apart), None)
                pin.left = (await trio.to_thread.run_sync(layer.keeper.missing)).left
            pin.error = "" if not pin.left else "some of it cannot be kept"
        except IpfsStoreError as error:
            pin.error = error.message
        if pin.error and before[0] != pin.error:
            _log.warning("%s is pinned and not here completely: %s; it is tried again", layer.digest or layer.cid, pin.error)
        elif not pin.left and before[1] != 0:
            _log.info("%s is pinned and here completely", layer.digest or layer.cid)

    async def _fetch(self, layer: Pinnable, spans: Iterable[Sequence[int]], pin: Pin | None) -> None:
        """``pin``: None for chunks that have to be kept together. The first error cancels the rest and is raised."""
        waiting = iter(spans)
        errors: list[IpfsStoreError] = []

        async def work() -> None:
            for span in waiting:
                try:
                    chunks = await self._reader.bring(layer, span, Priority.BACKGROUND)
                    if pin is None:
                        await trio.to_thread.run_sync(layer.keeper.keep, chunks, limiter=self._threads)
                    if self._room.full:
                        raise StorageFailed("the cache is full of what is in use, or its disk is")
                except IpfsStoreError as error:
                    errors.append(error)
                    nursery.cancel_scope.cancel()
                    return
                if layer.key not in self._names:
                    return
                if pin is not None and pin.left is not None:
                    pin.left = max(pin.left - sum(map(len, chunks.values())), 0)

        async with trio.open_nursery() as nursery:
            for _ in range(AT_A_TIME):
                nursery.start_soon(work)
        if errors:
            raise errors[0]

    def _note(self, key: str, names: set[str]) -> None:
        path = self._folder / key
        try:
            if names:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                aside = path.with_name(f".{key}")
                with aside.open("w") as file:
                    file.write(json.dumps(sorted(names)))
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(path)
            else:
                path.unlink(missing_ok=True)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageFailed(f"the pin cannot be noted in {self._folder}: {error.strerror}") from error
        if names:
            self._names[key] = names
        else:
            self._names.pop(key, None)
            self._state.pop(key, None)
            self._room.retry()


def _spans(layer: Pinnable, chunks: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut where the blob goes on for long enough; ``chunks`` are in its order."""
    offset = layer.table.stream_offset
    start = 0
    for at in range(1, len(chunks)):
        if offset[chunks[at]] - offset[chunks[start]] >= _SPAN:
            yield chunks[start:at]
            start = at
    yield chunks[start:]
