"""What goes first when the cache is full: what nothing mounted has, and of that what was used longest ago."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ipfs_store.formats.toc import Toc
from snapshotter.cache import ChunkCache, ContentStore, Room, chunk_name
from snapshotter.dataplane.build import build_tree
from snapshotter.dataplane.candidates import evictable
from snapshotter.dataplane.keeping import ChunkKeeper
from snapshotter.dataplane.layers import Counters, MountedLayer
from snapshotter.metadata import ContentIndex
from snapshotter.metadata.build import build_metadata
from snapshotter.metadata.contentid import make_scope
from snapshotter.metadata.index import encode_index
from snapshotter.metadata.kept import KeptMetadata, write_pair
from tests.dataplane.synthetic import of_files

MIB = 1 << 20
SCOPE = make_scope(b"salt", "")


def toc_of(*files: bytes) -> Toc:
    return of_files([(f"f{number}", data) for number, data in enumerate(files)], chunk_size=MIB)[1]


class Cache:
    """Layers whose files are all here."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.room = Room(folder, max_bytes=max_bytes)
        self.store = ContentStore(folder / "contents", self.room)
        self.chunks = ChunkCache(folder, self.room)
        self.kept = KeptMetadata(folder / "metadata")
        self.native: dict[str, ContentIndex] = {}
        self.portable: list[MountedLayer] = []
        self.room.candidates = lambda: evictable(self.store, self.chunks, self.kept, native=self.native, portable=self.portable)

    def add(self, key: str, *files: bytes) -> None:
        """A native layer that is mounted."""
        metadata = build_metadata(toc_of(*files), scope=SCOPE, layer=key)
        write_pair(self.kept.folder / key, b"image", encode_index(metadata.contents, kind="estargz", entries=1, image=b"image"))
        index = self.kept.index(key)
        assert index is not None
        self.native[key] = index
        by_digest = {hashlib.sha256(data).digest(): data for data in files}
        for number in range(index.contents):
            self.store.put(index.id(number), [by_digest[index.digest(index.first[number])]])

    def unmount(self, key: str, when: int) -> None:
        del self.native[key]
        os.utime(self.kept.folder / key, (when, when))

    def has(self, key: str) -> bool:
        index = self.kept.index(key)
        return index is not None and all(self.store.has(index.id(number)) for number in range(index.contents))


def large(letter: bytes) -> bytes:
    return letter * MIB


def test_what_is_not_mounted_goes_by_when_it_was_last(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 * MIB)
    for key in "abcdef":
        cache.add(key, large(key.encode()))
    shared = large(b"b")
    cache.add("with-b", shared, large(b"B"))
    for when, key in enumerate("cabdef", start=1000):
        cache.unmount(key, when)
    cache.add("next", *(large(b"%d" % number) for number in range(4)))  # one too many; a tenth is made free as well
    assert cache.has("with-b")  # mounted: b too, which went out of use early
    assert cache.has("next")
    assert {key for key in "abcdef" if cache.has(key)} == {"b", "d", "e", "f"}
    assert cache.room.used <= 10 * MIB


def test_metadata_go_behind_the_contents_that_they_are_for(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 5 * MIB)
    cache.add("old", large(b"o"), large(b"O"))
    cache.unmount("old", 1000)
    cache.add("new", *(large(b"%d" % number) for number in range(4)))
    assert not cache.has("old")
    assert cache.kept.index("old") is not None


def test_chunks_and_contents_have_one_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 6 * MIB)
    data = [os.urandom(MIB) for _ in range(4)]
    for number, one in enumerate(data):
        cache.chunks.put(hashlib.sha256(one).digest(), one)
        os.utime(file_of(cache, one), (number, number))
    tree = build_tree(toc_of(data[0]))
    cache.portable.append(
        MountedLayer(
            number=1, generation=1, cid="c", digest="", toc_digest="", tree=tree, table=tree, blob=None, decode=bytes,  # type: ignore[arg-type]
            counters=Counters(), keeper=ChunkKeeper(cache.chunks, tree, b""), content=0,
        )
    )  # fmt: skip
    cache.add("native", large(b"a"), large(b"b"), large(b"c"))
    assert cache.has("native")
    assert cache.room.used <= 6 * MIB
    assert [cache.chunks.has(hashlib.sha256(one).digest()) for one in data] == [True, False, False, True]


def file_of(cache: Cache, data: bytes) -> Path:
    name = chunk_name(hashlib.sha256(data).digest(), b"").hex()
    return cache.chunks.folder / "chunks" / name[:2] / name
