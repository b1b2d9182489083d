"""Verified bytes on disk: chunks by digest, whole files by content id."""

from snapshotter.cache.chunks import ChunkCache
from snapshotter.cache.contents import ContentStore
from snapshotter.cache.recent import RecentChunks
from snapshotter.cache.room import Candidate, Room, on_disk

__all__ = ["Candidate", "ChunkCache", "ContentStore", "RecentChunks", "Room", "on_disk"]
