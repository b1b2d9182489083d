"""The process of the data plane: its lock, its mount, its control socket, its end."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyfuse3
import trio

from ipfs_store.errors import IpfsStoreError, StorageFailed, Unavailable
from ipfs_store.formats.footer import TocLocation
from snapshotter.cache import ChunkCache, ContentStore, RecentChunks
from snapshotter.dataplane import control, fusemount
from snapshotter.dataplane.contents import NAME as CONTENT_NAME
from snapshotter.dataplane.contents import ContentTree
from snapshotter.dataplane.control import Answer, Ask, Check, Done, Failed, LayerStatus, Mount, Request, Status, Stop, Unmount, Wait
from snapshotter.dataplane.layers import Blob, Counters, MountedLayer, Opened, Readable
from snapshotter.dataplane.native import NativeLayers
from snapshotter.dataplane.operations import LayerOperations
from snapshotter.dataplane.reader import ChunkReader, Chunks, Key
from snapshotter.dataplane.waiters import Waiters
from snapshotter.scheduler import Scheduler

_log = logging.getLogger(__name__)


class LayerSource(Protocol):
    """Where layers come from."""

    async def open(self, cid: str, toc_digest: str, counters: Counters) -> Opened:
        """The layer, its TOC verified against ``toc_digest`` if that is not empty; raises IpfsStoreError."""
        ...

    async def load_toc(self, cid: str, toc_digest: str, counters: Counters) -> tuple[TocLocation, bytes]:
        """Where the layer's TOC is, and its verified JSON, to be decoded elsewhere; raises IpfsStoreError."""
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
    arguments: tuple[str, ...] = ()


class DataPlaneServer:
    """One FUSE mount, and a socket by which its layers come and go."""

    def __init__(self, settings: Settings, source: LayerSource) -> None:
        self._settings = settings
        self._source = source
        self._instance = uuid.uuid4().hex
        self._generation = itertools.count(1)
        # One more than processors: a thread that waits for the disk leaves room for one that computes.
        self._threads = trio.CapacityLimiter((os.cpu_count() or 1) + 1)
        self._scheduler: Scheduler[Key, Chunks] = Scheduler(give_up=settings.give_up)
        self._cache = ChunkCache(settings.cache, max_bytes=settings.cache_max_bytes)
        reader = ChunkReader(cache=self._cache, recent=RecentChunks(), scheduler=self._scheduler, threads=self._threads)
        waiters = Waiters()
        self._store = ContentStore(settings.cache / "contents")
        contents = ContentTree(reader, self._store, self._threads, waiters)
        self._native = NativeLayers(settings.cache, source, contents, self._generation.__next__)
        self._waiters = waiters
        self._operations = LayerOperations(reader, contents)
        self._changing: dict[int, trio.Lock] = {}
        self._stop = trio.Event()

    async def run(self, listener: trio.SocketListener, ready: Callable[[], None]) -> None:
        """Serve the mount (which `pyfuse3.init` made) until told to stop, by the socket, by a signal, or by its unmounting."""
        async with self._scheduler.running(), trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_kernel)
            nursery.start_soon(self._operations.watch_killed)
            nursery.start_soon(self._waiters.watch)
            nursery.start_soon(self._native.run)
            nursery.start_soon(trio.serve_listeners, self._converse, [listener])
            nursery.start_soon(self._heed_signals)
            nursery.start_soon(trio.to_thread.run_sync, self._cache.count)
            nursery.start_soon(trio.to_thread.run_sync, self._tune)
            ready()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    @property
    def operations(self) -> LayerOperations:
        """For `pyfuse3.init`."""
        return self._operations

    async def _serve_kernel(self) -> None:
        await pyfuse3.main(max_tasks=fusemount.MAX_TASKS)
        if not self._stop.is_set():
            _log.warning("%s was unmounted by somebody; the data plane ends", self._settings.mountpoint)
            self._stop.set()

    async def _heed_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                _log.info("%s: unmounting", signal.Signals(number).name)
                self._stop.set()

    def _tune(self) -> None:
        fusemount.tune(self._settings.mountpoint, read_ahead_kib=self._settings.read_ahead_kib, scratch=self._settings.control.parent)

    # The control socket.

    async def _converse(self, stream: trio.SocketStream) -> None:
        lines = control.Lines()
        with contextlib.suppress(trio.BrokenResourceError):  # whoever asked has gone
            async with stream:
                async for data in stream:
                    for line in lines.feed(data):
                        answer, after = await self._answer(line)
                        await stream.send_all(control.encode(answer))
                        if after is not None:
                            after()

    async def _answer(self, line: bytes) -> tuple[Answer, Callable[[], None] | None]:
        try:
            request = control.decode_request(line)
            if isinstance(request, Stop):
                return Done(), self._stop.set
            return await self._do(request), None
        except IpfsStoreError as error:
            return Failed(error.message, error.hint), None
        except Exception as error:  # noqa: BLE001 - logged; a defect must cost one request, not the mounts of the whole machine
            _log.exception("the request %r failed in a way that nobody expected", line[:200])
            return Failed(f"{type(error).__name__}: {error}"), None

    async def _do(self, request: Request) -> Answer:
        match request:
            case Mount():
                return await self._mount(request)
            case Unmount():
                await self._unmount(request.layer)
                return Done()
            case Check():
                return Done(
                    yes=(request.layer in self._operations.layers or request.layer in self._native)
                    and bool(fusemount.mounts_at(self._settings.mountpoint))
                )
            case Ask():
                return self._status()
            case Stop():
                return Done()

    async def _mount(self, request: Mount) -> Done:
        if not 0 < request.layer < 1 << 31:
            raise StorageFailed(f"{request.layer} is no layer number")
        async with self._changes(request.layer):
            if request.mode == "native":
                image = await self._native.mount(request)
                return Done(path=str(image), data=(str(self._store.data), str(self._settings.mountpoint / os.fsdecode(CONTENT_NAME))))
            there = self._operations.layers.get(request.layer)
            if there is None:
                await self._open(request)
            elif (there.cid, there.toc_digest) != (request.cid, request.toc_digest):
                raise StorageFailed(
                    f"layer {request.layer} is mounted from {there.cid} already; unmount it before it becomes {request.cid}"
                )
        return Done(path=str(self._settings.mountpoint / str(request.layer)))

    async def _open(self, request: Mount) -> None:
        counters = Counters()
        opened: Opened | None = None
        with trio.move_on_after(request.timeout):
            opened = await self._source.open(request.cid, request.toc_digest, counters)
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
            content=opened.tree.content,
        )
        _log.info("layer %d: %s (ipfs://%s), %d entries", request.layer, request.digest, request.cid, opened.tree.nodes)

    async def _unmount(self, number: int) -> None:
        async with self._changes(number):
            self._native.unmount(number)
            if self._operations.layers.pop(number, None) is not None:
                pyfuse3.invalidate_entry_async(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(str(number).encode()), ignore_enoent=True)

    def _changes(self, number: int) -> AbstractAsyncContextManager[None]:
        return self._changing.setdefault(number, trio.Lock())

    def _status(self) -> Status:
        waiting: dict[int, list[Wait]] = {}
        for flight in self._scheduler.waiting():
            generation, offset = flight.key
            waiting.setdefault(generation, []).append(Wait(offset, flight.age, flight.readers, flight.attempts, flight.reason))
        return Status(
            pid=os.getpid(),
            instance=self._instance,
            mountpoint=str(self._settings.mountpoint),
            arguments=list(self._settings.arguments),
            cache_bytes=self._cache.used,
            rss_bytes=_rss(),
            layers=[_layer_status(number, layer, waiting.get(layer.generation, [])) for number, layer in self._layers()],
        )

    def _layers(self) -> list[tuple[int, Readable]]:
        native = [(number, layer) for layer in self._native for number in layer.numbers]
        return sorted([*self._operations.layers.items(), *native], key=lambda item: item[0])


def serve(settings: Settings, source: Callable[[], AbstractAsyncContextManager[LayerSource]], ready: Callable[[], None]) -> None:
    """Be the data plane: returns when it was stopped and unmounted; raises StorageFailed if it cannot start."""
    with _locked(settings.control):
        fusemount.clear_stale(settings.mountpoint)
        settings.control.unlink(missing_ok=True)
        settings.mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
        trio.run(_serve, settings, source, ready)


async def _serve(
    settings: Settings, open_source: Callable[[], AbstractAsyncContextManager[LayerSource]], ready: Callable[[], None]
) -> None:
    async with open_source() as source:
        server = DataPlaneServer(settings, source)
        try:
            pyfuse3.init(server.operations, str(settings.mountpoint), set(fusemount.OPTIONS))
        except RuntimeError as error:
            raise StorageFailed(f"cannot mount FUSE on {settings.mountpoint}: {error}", hint="it needs root and /dev/fuse") from error
        try:
            listener = await _listen(settings.control)
            try:
                await server.run(listener, ready)
            finally:
                settings.control.unlink(missing_ok=True)
        finally:
            pyfuse3.close(unmount=True)


async def _listen(path: Path) -> trio.SocketListener:
    socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    before = os.umask(0o177)  # 0600 from the first moment
    try:
        await socket.bind(str(path))
    finally:
        os.umask(before)
    socket.listen(16)
    return trio.SocketListener(socket)


@contextlib.contextmanager
def _locked(control_socket: Path) -> Iterator[None]:
    """Be the only data plane of this socket; the file, which names the process, ends with it."""
    path = control_socket.with_suffix(".lock")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StorageFailed(f"a data plane runs already (process {file.read().strip()}, {path})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _layer_status(number: int, layer: Readable, waiting: list[Wait]) -> LayerStatus:
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
    )


def _rss() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
