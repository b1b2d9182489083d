"""OCI image layouts (image-spec, image-layout.md) as folders: blobs first, then ``index.json`` anew, in which other images stay."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from ipfs_store.errors import InvalidInput
from ipfs_store.images.targets import storage
from ipfs_store.images.targets.entries import INDEX, LAYOUT, MARKER, entry, merged
from ipfs_store.images.targets.interface import Published, TargetOptions, with_suffix
from ipfs_store.oci import Descriptor, Digest, Index
from ipfs_store.oci.manifest import MAX_DOCUMENT
from ipfs_store.oci.media_types import OCI_INDEX

Result = TypeVar("Result")


class LayoutTarget:
    """See ``targets.interface.Target``."""

    one_platform = False
    in_order = False
    keeps_ipfs_urls = False

    def __init__(self, path: Path, tag: str, options: TargetOptions) -> None:
        """``tag``: what the image is called in the layout (a tag or a full name); empty: by the name it has elsewhere."""
        self.name = tag or options.name
        self._path = path
        self._blobs = path / "blobs" / "sha256"
        self._made: list[Path] = []

    @property
    def folder(self) -> Path:
        """The layout's own, once there is one."""
        return self._blobs

    def prepare(self) -> None:
        """Make the folders; raises InvalidInput (something else is there), InvalidDescriptor, StorageFailed. Synchronous."""
        if self._path.exists():
            if not self._path.is_dir():
                raise InvalidInput(f"{self._path} is no folder", hint=f"for a layout in a tar: oci-archive:{self._path}")
            if not (self._path / MARKER).exists() and not (self._path / INDEX).exists() and any(self._path.iterdir()):
                raise InvalidInput(f"{self._path} is a folder with something else in it than an OCI layout")
            self._listed()  # what cannot be added to is told before the work
        try:
            for folder in (self._path, self._path / "blobs", self._blobs):
                if not folder.exists():
                    folder.mkdir(parents=True)
                    self._made.append(folder)
        except OSError as error:
            self.undo()
            raise storage.failed(error, self._path) from error

    async def has(self, blob: Descriptor) -> bool:
        """Whether it is there, undamaged."""
        return await _in_thread(self._path, lambda: storage.is_whole(self._blobs / blob.digest.hex, blob))

    async def put_blob(self, blob: Descriptor, path: Path, *, diff_id: Digest | None = None, given: bool = False) -> None:
        """Keep a blob; raises StorageFailed."""
        there = self._blobs / blob.digest.hex

        def work() -> None:
            if storage.is_whole(there, blob):
                return
            new = not there.exists()
            storage.keep_blob(path, there, given=given)
            if new:
                self._made.append(there)

        await _in_thread(self._path, work)

    async def put_document(self, document: Descriptor, data: bytes) -> None:
        """Keep a document; raises StorageFailed."""
        there = self._blobs / document.digest.hex

        def work() -> None:
            if storage.is_whole(there, document):
                return
            new = not there.exists()
            storage.write_small(there, data)
            if new:
                self._made.append(there)

        await _in_thread(self._path, work)

    async def commit(self, images: Sequence[Published]) -> tuple[str, ...]:
        """Write ``index.json``; raises StorageFailed."""
        names = [with_suffix_of_tag(self.name, image.suffix) for image in images]
        with trio.CancelScope(shield=True):
            await _in_thread(self._path, lambda: self._write_index(images, names))
        self._made.clear()
        return tuple(names)

    def undo(self) -> None:
        """Remove what was made, as far as nobody else uses it. Synchronous."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # a folder that somebody else put something into, or a blob that is gone
                path.rmdir() if path.is_dir() else path.unlink()
        self._made.clear()

    def _write_index(self, images: Sequence[Published], names: Sequence[str]) -> None:
        with storage.opened_folder(self._blobs):
            pass
        # Two conversions into the same layout both read, change and write index.json.
        with storage.opened_folder(self._path) as handle, _locked(handle):
            if not (self._path / MARKER).exists():
                storage.write_small(self._path / MARKER, LAYOUT)
            before = self._listed()
            added = [entry(image.root, name) for image, name in zip(images, names, strict=True)]
            storage.write_small(self._path / INDEX, before.replace(manifests=merged(before.manifests, added)).to_bytes())

    def _listed(self) -> Index:
        index = self._path / INDEX
        if not index.exists():
            return Index(OCI_INDEX, (), {"schemaVersion": 2, "mediaType": OCI_INDEX})
        return Index.parse(_limited(index), where=str(index), media_type=OCI_INDEX)


def with_suffix_of_tag(name: str, suffix: str) -> str:
    """As ``with_suffix``, also for what is a tag alone, as layouts have them."""
    return with_suffix(name, suffix) if "/" in name or ":" in name else f"{name}{suffix}".lstrip("-")


def _limited(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_DOCUMENT + 1)


@contextlib.contextmanager
def _locked(handle: int) -> Iterator[None]:
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


async def _in_thread(path: Path, work: Callable[[], Result]) -> Result:
    def translated() -> Result:
        try:
            return work()
        except OSError as error:
            raise storage.failed(error, path) from error

    return await trio.to_thread.run_sync(translated)
