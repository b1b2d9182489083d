"""The store's housekeeping: sound after a power failure, synced now and then, what goes first when it is full, bits that flip."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import trio

from ipfs_store.errors import StorageFailed
from snapshotter.cache import ChunkCache, ContentStore, on_disk
from snapshotter.metadata import ContentId, ContentIndex
from snapshotter.metadata.index import HOLE, NO_DIGEST
from snapshotter.metadata.kept import KeptMetadata

_log = logging.getLogger(__name__)

SYNC_EVERY = 30.0
"""Seconds: what was fetched in the last of them is hashed again after a power failure, or fetched again. A sync of 1 GB takes a second or two."""


class Upkeep:
    """Of ``store`` and ``chunks``, which share their room."""

    def __init__(self, store: ContentStore, chunks: ChunkCache, kept: KeptMetadata) -> None:
        self._store = store
        self._chunks = chunks
        self._kept = kept

    def prepare(self) -> None:
        """Before anything is mounted, in a thread: after an unclean boot, hash again what may not have reached the disk.

        Raises StorageFailed. A listing of the store (0.5 s for 100,000 contents) after a boot, else nothing.
        """
        self._kept.clear()
        if self._store.sound:
            return
        dropped = self._kept.drop_unsound()
        if dropped:
            _log.warning("the metadata of %d layers were damaged when the machine stopped; they are built again", dropped)
        indexes = self._kept.indexes()
        checked, dropped = self._store.unproven(lambda content, path: is_whole(indexes, ContentId(content), path))
        if checked:
            _log.warning(
                "the machine was not shut down cleanly: %d files of the cache were hashed again, %d of them dropped", checked, dropped
            )

    async def run(self) -> None:
        """Run for ever: count what is there, then sync now and then, and at the end."""
        try:
            await trio.to_thread.run_sync(self._count)
            while True:
                await trio.sleep(SYNC_EVERY)
                await trio.to_thread.run_sync(self._sync)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._sync)

    def verify(self) -> tuple[int, int]:
        """Hash every content, and drop those that are not what they were (new mounts then fetch them); (looked at, dropped). In a thread."""
        indexes = self._kept.indexes()
        seen = dropped = 0
        for file in self._store.files():
            seen += 1
            path = Path(file.path)
            if not is_whole(indexes, ContentId(file.content), path) and path.exists():
                _log.warning("%s was damaged on the disk; dropped, it is fetched again", path)
                self._store.drop(file.content)
                dropped += 1
        return seen, dropped

    def _sync(self) -> None:
        try:
            self._store.sync()
        except StorageFailed as error:
            self._store.room.say_once(error.message)

    def _count(self) -> None:
        self._store.count()
        self._chunks.count()
        self._store.room.counted(sum(on_disk(size) for _, size, _ in self._kept.files(())))
        self._store.room.trim()


def is_whole(indexes: Iterable[ContentIndex], content: ContentId, path: Path) -> bool:
    """Whether the file holds the content, by the digests of any index that knows it; False where none does, or has digests."""
    for index in indexes:
        number = index.number(content)
        if number is not None:
            return _matches(index, number, path)
    return False


def _matches(index: ContentIndex, number: int, path: Path) -> bool:
    try:
        with path.open("rb") as file:
            for chunk in index.all_chunks(number):
                digest = index.digest(chunk)
                if digest == NO_DIGEST:
                    return False
                data = file.read(index.chunk_size[chunk])
                if digest == HOLE:
                    if data.count(0) != index.chunk_size[chunk]:
                        return False
                elif hashlib.sha256(data).digest() != digest:
                    return False
            return not file.read(1)
    except OSError as error:
        _log.warning("%s cannot be read: %s", path, error.strerror)
        return False
