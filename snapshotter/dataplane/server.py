"""The process of the data plane: its place on the FUSE connection, its control socket, the layers that it was left, its end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import struct
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import pyfuse3
import trio

from ipfs_store.errors import IpfsStoreError, StorageFailed, Unavailable
from ipfs_store.formats.chunks import Data
from ipfs_store.formats.footer import TocLocation
from snapshotter.cache import Candidate, ChunkCache, ContentStore, RecentChunks, Room
from snapshotter.dataplane import control, fusemount
from snapshotter.dataplane.cached import cached_bytes
from snapshotter.dataplane.candidates import evictable
from snapshotter.dataplane.contents import NAME as CONTENT_NAME
from snapshotter.dataplane.contents import ContentTree
from snapshotter.dataplane.control import (
    Adopt,
    Adopted,
    Answer,
    Ask,
    Chain,
    Check,
    Done,
    Failed,
    LayerStatus,
    Mount,
    Pin,
    Request,
    Status,
    Unmount,
    Wait,
)
from snapshotter.dataplane.keeping import ChunkKeeper, Chunks
from snapshotter.dataplane.layers import Blob, Counters, MountedLayer, NativeLayer, Opened, Readable
from snapshotter.dataplane.native import NativeLayers
from snapshotter.dataplane.openers import Openers
from snapshotter.dataplane.operations import LayerOperations
from snapshotter.dataplane.pins import Pin as PinState
from snapshotter.dataplane.pins import Pinnable, Pins
from snapshotter.dataplane.reader import ChunkReader, Key
from snapshotter.dataplane.registry import Registry
from snapshotter.dataplane.session import Holder, Session
from snapshotter.dataplane.told import Told
from snapshotter.dataplane.waiters import Waiters
from snapshotter.holder.channel import Message
from snapshotter.holder.handshake import Handshake
from snapshotter.holder.locks import Occupied, locked
from snapshotter.holder.table import mounts_at
from snapshotter.scheduler import Scheduler

_log = logging.getLogger(__name__)

# Layers whose metadata are on disk are back within milliseconds each; those that are there are served after this long, and who asks for
# another waits for it.
REOPEN_BEFORE_SERVING = 2.0
REOPEN_AGAIN = 2.0
"""Seconds between two attempts at a layer that was mounted and cannot be opened now."""


class LayerSource(Protocol):
    """Where layers come from."""

    async def open(self, cid: str, toc_digest: str, counters: Counters, *, toc: str = "") -> Opened:
        """The layer, its TOC verified against ``toc_digest`` if that is not empty; from the object ``toc`` if one is named. Raises IpfsStoreError."""
        ...

    async def load_toc(self, cid: str, toc_digest: str, counters: Counters, *, toc: str = "") -> tuple[TocLocation, bytes]:
        """Where the layer's TOC is, and its verified JSON, to be decoded elsewhere; ``toc`` as for ``open``. Raises IpfsStoreError."""
        ...

    def blob(self, cid: str, counters: Counters) -> Blob:
        """What the layer's contents are read from. Nothing is fetched before the first read."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process is started with. Sizes in bytes, times in seconds."""

    mountpoint: Path
    control: Path
    cache: Path
    cache_max_bytes: int
    give_up: float
    read_ahead_kib: int
    cache_reserve: int = 0
    """Bytes of the cache's file system that stay free."""
    cache_scope: Literal["machine", "namespace"] = "machine"
    verify_cache: bool = False
    """Hash every content now and then, in the background."""
    command: tuple[str, ...] = ()
    """What the process was started with."""

    @property
    def registry(self) -> Path:
        """Where it is noted which layers are mounted."""
        return self.control.with_suffix(".layers")

    @property
    def openers(self) -> Path:
        """Where it is noted which threads opened files."""
        return self.control.with_suffix(".openers")

    @property
    def told(self) -> Path:
        """Where it is noted which threads were told to look for a file again."""
        return self.control.with_suffix(".told")


class DataPlaneServer:
    """One FUSE connection, and a socket by which its layers come and go."""

    def __init__(self, settings: Settings, source: LayerSource, holder: Holder) -> None:
        self._settings = settings
        self._source = source
        self._holder = holder
        self._instance = uuid.uuid4().hex
        self._generation = itertools.count(1)
        # One more than processors: a thread that waits for the disk leaves room for one that computes.
        self._threads = trio.CapacityLimiter((os.cpu_count() or 1) + 1)
        self._scheduler: Scheduler[Key, Chunks] = Scheduler(give_up=settings.give_up)
        self._reader = reader = ChunkReader(recent=RecentChunks[Data](), scheduler=self._scheduler, threads=self._threads)
        waiters = Waiters()
        room = Room(settings.cache, max_bytes=settings.cache_max_bytes, reserve=settings.cache_reserve)
        self._chunks = ChunkCache(settings.cache, room)
        self._store = ContentStore(settings.cache / "contents", room)
        self._contents = contents = ContentTree(reader, self._store, self._threads, waiters)
        self._native = NativeLayers(
            settings.cache, self._store, self._chunks, source, contents, self._generation.__next__,
            per_namespace=settings.cache_scope == "namespace", verify=settings.verify_cache,
        )  # fmt: skip
        self._waiters = waiters
        self._pins = Pins(settings.cache / "pins", room, reader, self._threads, self._distinct)
        room.candidates = self._evictable
        self._operations = LayerOperations(reader, contents, waiters, give_up=settings.give_up)
        self._session = Session(self._operations)
        self._registry = Registry(settings.registry)
        self._changing: dict[int, trio.Lock] = {}
        self._reopening: dict[int, trio.CancelScope] = {}
        self._leaving = False
        self._stop = trio.Event()

    async def run(self, connection: int) -> None:
        """Take our place on ``connection`` when the holder says so, and serve until it ends or we are told to leave.

        Raises StorageFailed where we cannot.
        """
        handshake = Handshake.decode((await self._holder.expect("init")).handshake)
        reply = await self._session.greet(handshake)
        async with self._scheduler.running(), trio.open_nursery() as nursery:
            await self._native.prepare()
            await self._reopen(nursery)
            await self._holder.say(Message("prepared", reply=reply.hex()))
            go = await self._holder.expect("go")
            try:
                with locked(self._settings.control.with_suffix(".lock")):
                    self._operations.remember_openers(Openers(self._settings.openers), new=go.first)
                    self._contents.told = Told(self._settings.told)
                    self._session.take(connection, Handshake.decode(go.handshake))
                    await self._serve(nursery)
            except Occupied as error:
                raise StorageFailed(f"a data plane runs already ({error})") from None

    async def _serve(self, nursery: trio.Nursery) -> None:
        self._settings.control.unlink(missing_ok=True)
        listener = await _listen(self._settings.control)
        try:
            nursery.start_soon(self._serve_kernel)
            nursery.start_soon(self._operations.watch_killed)
            nursery.start_soon(self._waiters.watch)
            nursery.start_soon(self._native.run)
            nursery.start_soon(self._reader.run)
            nursery.start_soon(self._pins.run)
            nursery.start_soon(trio.serve_listeners, self._converse, [listener])
            nursery.start_soon(self._heed_signals)
            nursery.start_soon(trio.to_thread.run_sync, self._tune)
            await self._holder.say(Message("serving"))
            nursery.start_soon(self._holder.keep_company)
            await self._stop.wait()
            nursery.cancel_scope.cancel()
        finally:
            self._settings.control.unlink(missing_ok=True)

    async def _serve_kernel(self) -> None:
        await self._session.serve()
        if not self._leaving:
            await self._holder.say(Message("unmounted"))
        self._stop.set()

    async def _heed_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                _log.info("%s: answering what was asked, and leaving", signal.Signals(number).name)
                self._leaving = True
                self._session.leave()

    def _tune(self) -> None:
        fusemount.set_read_ahead(self._settings.mountpoint, self._settings.read_ahead_kib)

    # Layers that were mounted before this process was.

    async def _reopen(self, nursery: trio.Nursery) -> None:
        """Open again what the registry has; return when all is there, or after a while. Who asks for one that is not there waits for it."""
        requests = self._registry.requests()
        for request in requests:
            self._operations.coming[request.layer] = trio.Event()
        events = list(self._operations.coming.values())
        for request in requests:
            nursery.start_soon(self._reopen_one, request)
        with trio.move_on_after(REOPEN_BEFORE_SERVING):
            for event in events:
                await event.wait()

    async def _reopen_one(self, request: Mount) -> None:
        told = False
        while request.layer in self._operations.coming:
            try:
                with trio.CancelScope() as scope:
                    self._reopening[request.layer] = scope
                    async with self._changes(request.layer):
                        if request.layer in self._operations.coming:
                            await self._open(request)
                if scope.cancelled_caught:
                    continue  # somebody wants to mount or unmount it
            except IpfsStoreError as error:
                if not told:
                    _log.warning("layer %d (ipfs://%s) was mounted and cannot be opened now: %s", request.layer, request.cid, error.message)
                told = True
                await trio.sleep(REOPEN_AGAIN)
                continue
            except Exception:  # noqa: BLE001 - logged; a defect must cost one layer, not the mounts of the whole machine
                _log.exception("layer %d (ipfs://%s) was mounted and cannot be opened again", request.layer, request.cid)
            self._settled(request.layer)

    def _make_way(self, layer: int) -> None:
        """Whoever asks for a layer does not wait for an attempt to reopen it, which may hang on the network."""
        scope = self._reopening.get(layer)
        if scope is not None:
            scope.cancel()

    def _settled(self, layer: int) -> None:
        """It is mounted now, or it is not: nobody has to wait."""
        event = self._operations.coming.pop(layer, None)
        if event is not None:
            event.set()

    # The control socket.

    async def _converse(self, stream: trio.SocketStream) -> None:
        lines = control.Lines()
        with contextlib.suppress(trio.BrokenResourceError):  # whoever asked has gone
            async with stream:
                async for data in stream:
                    for line in lines.feed(data):
                        answer = await self._answer(line)
                        if isinstance(answer, Adopted):
                            await self._hand_out(stream.socket, answer)
                        else:
                            await stream.send_all(control.encode(answer))

    async def _answer(self, line: bytes) -> Answer:
        try:
            return await self._do(control.decode_request(line))
        except IpfsStoreError as error:
            return Failed(error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - logged; a defect must cost one request, not the mounts of the whole machine
            _log.exception("the request %r failed in a way that nobody expected", line[:200])
            return Failed(f"{type(error).__name__}: {error}")

    async def _hand_out(self, to: trio.socket.SocketType, answer: Adopted) -> None:
        """The answer with the connection and a channel: the one who asked is our holder now."""
        with self._holder.replaced() as end:
            rights = struct.pack("ii", self._session.descriptor, end.fileno())
            await to.sendmsg([control.encode(answer)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    async def _do(self, request: Request) -> Answer:
        match request:
            case Mount():
                return await self._mount(request)
            case Unmount():
                await self._unmount(request.layer)
                return Done()
            case Pin():
                await self._pin(request)
                return Done()
            case Chain():
                image = await self._native.chain(request.layers)
                return self._native_answer(image) if image is not None else Done()
            case Check():
                return Done(
                    yes=(request.layer in self._operations.layers or request.layer in self._native)
                    and bool(mounts_at(self._settings.mountpoint))
                )
            case Ask(cached=cached):
                return await self._status(cached)
            case Adopt():
                assert self._session.handshake is not None
                return Adopted(os.getpid(), list(self._settings.command), self._session.handshake.encode())

    async def _mount(self, request: Mount) -> Done:
        if not 0 < request.layer < 1 << 31:
            raise StorageFailed(f"{request.layer} is no layer number")
        self._make_way(request.layer)
        async with self._changes(request.layer):
            done = await self._open(request)
            self._registry.note(request)
            self._settled(request.layer)
        return done

    async def _open(self, request: Mount) -> Done:
        """Serve the layer, if it is not served already; raises IpfsStoreError."""
        if request.mode == "native":
            image = await self._native.mount(request)
            self._pins.look()
            return self._native_answer(image)
        there = self._operations.layers.get(request.layer)
        if there is None:
            await self._open_portable(request)
        elif (there.cid, there.toc_digest) != (request.cid, request.toc_digest):
            raise StorageFailed(f"layer {request.layer} is mounted from {there.cid} already; unmount it before it becomes {request.cid}")
        return Done(path=str(self._settings.mountpoint / str(request.layer)))

    def _native_answer(self, image: Path) -> Done:
        return Done(path=str(image), data=(str(self._store.data), str(self._settings.mountpoint / os.fsdecode(CONTENT_NAME))))

    async def _open_portable(self, request: Mount) -> None:
        counters = Counters()
        scope = self._native.scope(request.namespace) if self._settings.cache_scope == "namespace" else b""
        opened: Opened | None = None
        with trio.move_on_after(request.timeout):
            opened = await self._source.open(request.cid, request.toc_digest, counters, toc=request.toc)
        if opened is None:
            raise Unavailable(f"the TOC of {request.cid} did not come within {request.timeout:g} s")
        self._operations.layers[request.layer] = MountedLayer(
            number=request.layer,
            generation=next(self._generation),
            cid=request.cid,
            digest=request.digest,
            toc_digest=request.toc_digest,
            tree=opened.tree,
            table=opened.tree,
            blob=opened.blob,
            decode=opened.decode,
            counters=counters,
            keeper=ChunkKeeper(self._chunks, opened.tree, scope),
            content=opened.tree.content,
            scope=scope,
        )
        self._pins.look()
        _log.info("layer %d: %s (ipfs://%s), %d entries", request.layer, request.digest, request.cid, opened.tree.nodes)

    async def _unmount(self, number: int) -> None:
        self._make_way(number)
        async with self._changes(number):
            self._registry.forget(number)
            self._settled(number)
            gone = self._native.unmount(number)
            portable = self._operations.layers.pop(number, None)
            if portable is not None:
                gone = portable.key
                pyfuse3.invalidate_entry_async(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(str(number).encode()), ignore_enoent=True)

            self._store.room.retry()
            if gone and all(layer.key != gone for layer in self._distinct()):
                self._pins.forget(gone)

    async def _pin(self, request: Pin) -> None:
        mounted = dict(self._layers())
        missing = [number for number in request.layers if number not in mounted]
        if missing or not request.layers:
            raise StorageFailed(f"layer {missing[0] if missing else 'of nothing'} is not mounted, and cannot be pinned")
        layers = [mounted[number] for number in request.layers]
        if request.pinned:
            await self._pins.pin(request.name, layers)
        else:
            self._pins.unpin(request.name, layers)

    def _changes(self, number: int) -> AbstractAsyncContextManager[None]:
        return self._changing.setdefault(number, trio.Lock())

    async def _status(self, cached: bool) -> Status:
        layers = self._layers()
        sizes: list[int | None] = [None] * len(layers)
        if cached:
            served = [layer for _, layer in layers]
            sizes[:] = await trio.to_thread.run_sync(cached_bytes, served, self._store.data, self._settings.cache / "chunks")
        waiting: dict[int, list[Wait]] = {}
        for flight in self._scheduler.waiting():
            generation, offset = flight.key
            waiting.setdefault(generation, []).append(Wait(offset, flight.age, flight.readers, flight.attempts, flight.reason))
        return Status(
            pid=os.getpid(),
            instance=self._instance,
            mountpoint=str(self._settings.mountpoint),
            command=list(self._settings.command),
            cache_bytes=self._store.room.used + self._store.room.held,
            rss_bytes=_rss(),
            layers=[
                _layer_status(number, layer, waiting.get(layer.generation, []), size, self._pins.of(layer))
                for (number, layer), size in zip(layers, sizes, strict=True)
            ],
            no_verity=self._native.no_verity,
        )

    def _evictable(self) -> list[Candidate]:
        """In a thread, while layers come and go."""
        native = {layer.key: layer.index for layer in self._native}
        portable = list(self._operations.layers.values())
        return evictable(self._store, self._chunks, self._native.kept, native=native, portable=portable, pinned=self._pins.keys)

    def _layers(self) -> list[tuple[int, Pinnable]]:
        native: list[tuple[int, Pinnable]] = [(number, layer) for layer in self._native for number in layer.numbers]
        return sorted([*self._operations.layers.items(), *native], key=lambda item: item[0])

    def _distinct(self) -> list[Pinnable]:
        """Each layer once, whatever numbers it has; for pins."""
        return list({layer.key: layer for _, layer in self._layers()}.values())


def serve(settings: Settings, source: Callable[[], AbstractAsyncContextManager[LayerSource]], end: socket.socket, connection: int) -> None:
    """Be the data plane on ``connection``, as the holder at ``end`` wants it; raises StorageFailed where that cannot be."""
    trio.run(_serve, settings, source, end, connection)


async def _serve(
    settings: Settings, open_source: Callable[[], AbstractAsyncContextManager[LayerSource]], end: socket.socket, connection: int
) -> None:
    async with open_source() as source:
        await DataPlaneServer(settings, source, Holder(end)).run(connection)


async def _listen(path: Path) -> trio.SocketListener:
    listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    before = os.umask(0o177)  # 0600 from the first moment
    try:
        await listening.bind(str(path))
    finally:
        os.umask(before)
    listening.listen(16)
    return trio.SocketListener(listening)


def _layer_status(number: int, layer: Readable, waiting: list[Wait], cached: int | None, pin: PinState | None) -> LayerStatus:
    counters = layer.counters
    return LayerStatus(
        layer=number,
        digest=layer.digest,
        cid=layer.cid,
        entries=layer.table.nodes,
        content=layer.content,
        fetched=counters.fetched,
        read=counters.read,
        files_opened=len(counters.opened),
        hits=counters.hits,
        misses=counters.misses,
        waiting=waiting,
        mode="native" if isinstance(layer, NativeLayer) else "portable",
        cached=cached,
        pinned=pin is not None,
        pin_left=pin.left if pin else None,
        pin_error=pin.error if pin else "",
    )


def _rss() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
