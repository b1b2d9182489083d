"""The store's housekeeping: sound after a power failure, synced now and then, counted when the process starts."""

from __future__ import annotations

import logging

import trio

from ipfs_store.errors import StorageFailed
from snapshotter.cache import ChunkCache, ContentStore, on_disk
from snapshotter.dataplane.soundness import Soundness, is_whole
from snapshotter.metadata import ContentId
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
        self.soundness = Soundness(store, kept)

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

    def _sync(self) -> None:
        try:
            self._store.sync()
            self.soundness.seal_fresh()
        except StorageFailed as error:
            self._store.room.say_once(error.message)

    def _count(self) -> None:
        self._store.count()
        self._chunks.count()
        self._store.room.counted(sum(on_disk(size) for _, size, _ in self._kept.files(())))
        self._store.room.trim()
