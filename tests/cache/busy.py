"""``python -m tests.cache.busy FOLDER SEED``: a store in use by three threads, until it is killed; a byte on stdout for each thing that was done."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
from pathlib import Path

from ipfs_store.errors import StorageFailed
from snapshotter.cache import Candidate, ContentStore, Room

NUMBERS = 400
CHUNK = 20_000
LARGE = 5
"""Every so many is a file of chunks."""


def content_of(number: int) -> tuple[bytes, bytes]:
    """Id and bytes."""
    size = 7 * CHUNK if number % LARGE == 0 else 10 + 37 * number
    return hashlib.sha256(b"id %d" % number).digest(), hashlib.shake_128(b"%d" % number).digest(size)


def open_store(folder: Path) -> ContentStore:
    store = ContentStore(folder / "contents", Room(folder, max_bytes=6 << 20))
    store.room.candidates = lambda: [Candidate(False, file.put, file.size, file.path) for file in store.files()]
    return store


def work(store: ContentStore, chance: random.Random) -> None:
    while True:
        number = chance.randrange(NUMBERS)
        content, data = content_of(number)
        match chance.randrange(20):
            case 0:
                store.sync()
            case 1:
                store.drop(content)
            case _ if number % LARGE:
                store.put(content, [data[: len(data) // 2], data[len(data) // 2 :]])
            case _:
                for part in chance.sample(range(7), chance.randrange(1, 8)):
                    store.write_chunks(content, len(data), 7, [(part, part * CHUNK, data[part * CHUNK :][:CHUNK])])
        os.write(1, b".")


def keep_working(store: ContentStore, chance: random.Random) -> None:
    while True:
        try:
            work(store, chance)
        except StorageFailed:  # full for the moment
            store.room.retry()


if __name__ == "__main__":
    store = open_store(Path(sys.argv[1]))
    for thread in range(3):
        threading.Thread(target=keep_working, args=(store, random.Random(f"{sys.argv[2]} {thread}"))).start()
