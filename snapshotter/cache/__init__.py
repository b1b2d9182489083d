"""Verified bytes on disk: chunks by digest, whole files by content id."""

from snapshotter.cache.chunks import ChunkCache, chunk_name
from snapshotter.cache.contents import ContentStore, StoredFile
from snapshotter.cache.recent import RecentChunks
from snapshotter.cache.room import Candidate, Room, on_disk

__all__ = ["Candidate", "ChunkCache", "ContentStore", "RecentChunks", "Room", "StoredFile", "chunk_name", "on_disk"]
