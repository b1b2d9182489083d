"""Against bits that flip on the disk: files are sealed by fs-verity where that works, and hashed again in the background where that is wanted.

Native files are read by the kernel without asking anybody. Where they are sealed, a wrong byte is an I/O error, the kernel's log names the
inode, and the file is dropped. Elsewhere only `check_all` finds one. What was dropped is fetched again for new mounts; a container that has
looked the file up keeps what it has.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import trio

from snapshotter.cache import ContentStore, StoredFile, verity
from snapshotter.metadata import ContentId, ContentIndex
from snapshotter.metadata.index import HOLE, NO_DIGEST
from snapshotter.metadata.kept import KeptMetadata

_log = logging.getLogger(__name__)

CHECK_EVERY = 7 * 86400.0
"""Seconds between two times that everything is hashed; data planes run for months."""
_BATCH = 64 << 20
"""Bytes that are hashed before there is a pause of as long."""
_KMSG = Path("/dev/kmsg")


class Soundness:
    """Of the contents of ``store``, by the indexes of ``kept``."""

    def __init__(
        self, store: ContentStore, kept: KeptMetadata, *, seal: Callable[[Path], None] = verity.seal, no_verity: str | None = None
    ) -> None:
        """``seal``, ``no_verity``: for tests; see `snapshotter.cache.verity`."""
        self._store = store
        self._kept = kept
        self._seal = seal
        self.no_verity = verity.why_not(store.folder / "tmp") if no_verity is None else no_verity
        """Why files are not sealed; empty: they are."""
        if not self.no_verity:
            store.fresh = []

    def seal_fresh(self) -> None:
        """Seal what was put since the last time; in a thread, behind a sync."""
        if self._store.fresh is None:
            return
        fresh, self._store.fresh = self._store.fresh, []
        for content in fresh:
            self._try_seal(content)

    async def run(self, *, everything: bool) -> None:
        """Run for ever: look at what is not sealed once, or at ``everything`` now and then; drop what the kernel says is corrupted."""
        async with trio.open_nursery() as nursery:
            if not self.no_verity:
                nursery.start_soon(self.watch)
            while everything or not self.no_verity:
                await self.check_all(everything=everything)
                await trio.sleep(CHECK_EVERY)

    async def check_all(self, *, everything: bool) -> tuple[int, int]:
        """Hash contents, drop those that are not what they were, seal the others; (looked at, dropped). Takes half a processor at most."""
        indexes = await trio.to_thread.run_sync(self._kept.indexes)
        seen = dropped = 0
        for batch in _batches(await trio.to_thread.run_sync(self._store.files)):
            began = time.monotonic()
            # Nobody waits at the end of the process for gigabytes to be hashed.
            check = partial(self._check, batch, indexes, everything)
            found = await trio.to_thread.run_sync(check, abandon_on_cancel=True)  # type: ignore[call-arg, unused-ignore]
            seen, dropped = seen + found[0], dropped + found[1]
            await trio.sleep(time.monotonic() - began)
        if seen:
            _log.info("%d files of the cache were hashed, %d dropped", seen, dropped)
        return seen, dropped

    async def watch(self, log: Path = _KMSG) -> None:
        """Drop what the kernel finds to be corrupted when somebody reads it. Runs for ever, unless its log cannot be read."""
        try:
            file = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            _log.warning("%s cannot be read (%s): what fs-verity finds damaged is replaced when cache.verify finds it", log, error.strerror)
            return
        try:
            if log == _KMSG:
                os.lseek(file, 0, os.SEEK_END)
            while True:
                await trio.lowlevel.wait_readable(file)
                try:
                    records = os.read(file, 8192)
                except BrokenPipeError:  # it was overwritten before we came
                    continue
                if not records:
                    return
                for inode in verity.corrupted_inodes(records):
                    await trio.to_thread.run_sync(self._drop_inode, inode)
        finally:
            os.close(file)

    def _check(self, files: Iterable[StoredFile], indexes: Iterable[ContentIndex], everything: bool) -> tuple[int, int]:
        seen = dropped = 0
        for file in files:
            try:
                if not everything and _is_sealed(file.path):
                    continue
            except FileNotFoundError:
                continue
            seen += 1
            if is_whole(indexes, ContentId(file.content), Path(file.path)):
                if not self.no_verity:
                    self._try_seal(file.content)
            elif os.path.exists(file.path):  # noqa: PTH110 - a string
                self._drop(file.content, file.path)
                dropped += 1
        return seen, dropped

    def _drop_inode(self, inode: int) -> None:
        """The number may be one of another file system: what can be read is right, and stays."""
        indexes = self._kept.indexes()
        for path in self._store.with_inode(inode):
            content = bytes.fromhex(path.rpartition("/")[2])
            if not is_whole(indexes, ContentId(content), Path(path)):
                self._drop(content, path)

    def _drop(self, content: bytes, path: str) -> None:
        _log.warning("%s is damaged on the disk, or nothing tells what it should be; dropped, new mounts fetch it again", path)
        self._store.drop(content)

    def _try_seal(self, content: bytes) -> None:
        try:
            self._seal(Path(self._store.path(content)))
        except FileNotFoundError:
            pass  # evicted meanwhile
        except OSError as error:
            if error.errno == errno.ETXTBSY and self._store.fresh is not None:
                self._store.fresh.append(content)  # a writer has not closed it yet
            else:
                self._store.room.say_once(f"{self._store.path(content)} cannot be sealed by fs-verity: {error.strerror}")


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
            # What nobody reads is not to push out of the page cache what somebody does.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_NOREUSE)
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
    except OSError as error:  # EIO from a sealed file: a bit has flipped
        _log.warning("%s cannot be read: %s", path, error.strerror)
        return False


def _is_sealed(path: str) -> bool:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return verity.is_sealed(file)
    finally:
        os.close(file)


def _batches(files: Iterable[StoredFile]) -> Iterator[list[StoredFile]]:
    batch: list[StoredFile] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
