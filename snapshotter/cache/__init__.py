"""Verified chunks on disk."""

from snapshotter.cache.chunks import ChunkCache
from snapshotter.cache.recent import RecentChunks

__all__ = ["ChunkCache", "RecentChunks"]
