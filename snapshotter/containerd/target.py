"""containerd's content store and image records, for whoever writes images (``containerd:NAME``)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from ipfs_store.errors import InvalidInput, InvalidReference
from ipfs_store.images.model import Sink
from ipfs_store.images.targets.interface import Published, Target, TargetOptions, references, with_suffix
from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.media_types import is_index, is_manifest
from snapshotter.containerd import labels
from snapshotter.containerd.connection import Connection, add_to_lease, connect, leased
from snapshotter.containerd.content import ContentStore
from snapshotter.containerd.errors import AlreadyExists, ContainerdNotFound
from snapshotter.containerd.ingest import PIECE, Ingest
from snapshotter.containerd.records import Images

Result = TypeVar("Result")


@asynccontextmanager
async def open_target(name: str, options: TargetOptions) -> AsyncIterator[Target]:
    """The image record ``name``. What is written is under a lease: without a commit, containerd collects it.

    Raises InvalidInput (no name), ContainerdUnavailable.
    """
    if not (name or options.name):
        raise InvalidInput("the image has no name to have in containerd", hint="containerd:NAME")
    stack = ExitStack()

    def enter() -> Connection:
        return stack.enter_context(leased(stack.enter_context(connect(options.address, options.namespace))))

    connection = await trio.to_thread.run_sync(enter)
    try:
        yield ContainerdTarget(connection, name or options.name, options)
    except BaseException as error:
        raised = error  # the name of the except clause is gone when the thread runs
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: stack.__exit__(type(raised), raised, raised.__traceback__))
        raise
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(stack.close)


class ContainerdTarget:
    """See ``ipfs_store.images.targets.interface.Target``."""

    one_platform = False
    in_order = False
    keeps_ipfs_urls = True

    def __init__(self, connection: Connection, name: str, options: TargetOptions) -> None:
        self.name = name
        self._connection = connection
        self._content = ContentStore(connection, pause=_pause)
        self._options = options

    @property
    def folder(self) -> Path:
        """Where scratch files go: containerd takes bytes, not files."""
        return self._options.folder

    async def has(self, blob: Descriptor) -> bool:
        """Whether it is there; it stays until the conversion ends."""
        return await trio.to_thread.run_sync(self._kept, blob.digest)

    async def put_blob(self, blob: Descriptor, path: Path, *, diff_id: Digest | None = None, given: bool = False) -> None:
        """Write a blob, and for a layer the label by which containerd knows its DiffID; raises ContainerdUnavailable, StorageFailed."""
        told = {labels.UNCOMPRESSED: str(diff_id)} if diff_id is not None else {}

        def work() -> None:
            with self._content.ingest(blob.digest, blob.size, told) as ingest:
                if ingest is None:
                    return
                with path.open("rb", buffering=0) as file:
                    while piece := file.read(PIECE):
                        trio.from_thread.check_cancelled()
                        ingest.write(piece)

        await trio.to_thread.run_sync(work)

    def sink(self) -> ContainerdSink:
        """See ``interface.Streaming``: the layer goes to containerd while it is made."""
        return ContainerdSink(self._content.unnamed())

    async def keep(self, blob: Descriptor, sink: Sink, *, diff_id: Digest | None = None) -> None:
        """See ``interface.Streaming``."""
        assert isinstance(sink, ContainerdSink), "made by sink()"
        told = {labels.UNCOMPRESSED: str(diff_id)} if diff_id is not None else {}

        def work() -> None:
            try:
                sink.file.commit(told, blob.digest, blob.size)
            except AlreadyExists:
                add_to_lease(self._connection, kind="content", name=str(blob.digest))
                if told:
                    self._content.label(blob.digest, told)

        await trio.to_thread.run_sync(work)

    async def put_document(self, document: Descriptor, data: bytes) -> None:
        """Write a document; a manifest or index keeps what it refers to from garbage collection. Raises as ``put_blob`` does."""
        told: dict[str, str] = {}
        if is_index(document.media_type) or is_manifest(document.media_type):
            config, items = references(document, data)
            told = labels.index_references(items) if config is None else labels.manifest_references(config, items)
        await trio.to_thread.run_sync(lambda: self._content.put(document.digest, data, told))

    async def commit(self, images: Sequence[Published]) -> tuple[str, ...]:
        """Make the records; raises ContainerdUnavailable."""
        names = [_suffixed(self.name, image.suffix) for image in images]
        records = Images(self._connection)
        with trio.CancelScope(shield=True):
            for image, name in zip(images, names, strict=True):
                await trio.to_thread.run_sync(lambda image=image, name=name: records.set(name, image.root, {}))
        return tuple(names)

    def _kept(self, digest: Digest) -> bool:
        try:
            self._content.info(digest)
            add_to_lease(self._connection, kind="content", name=str(digest))
        except ContainerdNotFound:
            return False
        return True


@dataclass(frozen=True, slots=True)
class ContainerdSink:
    """See ``ipfs_store.images.model.Sink``."""

    file: Ingest
    path: None = None

    def flush(self) -> None:
        """Raises ContainerdUnavailable, StorageFailed."""
        self.file.flush()

    def close(self) -> None:
        """Nothing of it is left in containerd, unless it was kept."""
        self.file.close()
        self.file.abort()


def _suffixed(name: str, suffix: str) -> str:
    """As ``with_suffix``; containerd's names need not be references."""
    try:
        return with_suffix(name, suffix)
    except InvalidReference:
        return f"{name}{suffix}"


def _pause(seconds: float) -> None:
    time.sleep(seconds)
    trio.from_thread.check_cancelled()
