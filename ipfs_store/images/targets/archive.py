"""Archives in a file: an OCI layout in a tar, with Docker's ``manifest.json`` beside its index where Docker is to load it.

``docker save`` (since 25) and ``ctr image export`` write both too. The tar is written in order into a file that gets its name at the
end; where its path is something else than a file (a pipe, ``/dev/stdout``), it is copied there then.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from ipfs_store.errors import BlobMismatch, InvalidInput, InvalidReference, StorageFailed
from ipfs_store.images.sources.scratch import Scratch
from ipfs_store.images.targets import storage
from ipfs_store.images.targets.entries import INDEX, LAYOUT, MARKER, blob_name, entry, index_document
from ipfs_store.images.targets.interface import Published, TargetOptions, references
from ipfs_store.images.targets.layout import with_suffix_of_tag
from ipfs_store.oci import Descriptor, Digest, Reference
from ipfs_store.oci.manifest import encode_document
from ipfs_store.oci.media_types import is_manifest

_MANIFEST = "manifest.json"
_BLOCK = 512
_RECORD = 10240  # what tar pads an archive to

Result = TypeVar("Result")


class ArchiveTarget:
    """See ``targets.interface.Target``."""

    in_order = True
    keeps_ipfs_urls = False

    def __init__(self, path: Path, name: str, options: TargetOptions, *, docker: bool) -> None:
        """``name``: of the image in the archive; empty: the one it has elsewhere. ``docker``: with a ``manifest.json``."""
        self.name = name or options.name
        self.one_platform = docker
        self._path = path
        self._docker = docker
        self._folder = options.folder
        self._file: Scratch | None = None
        self._blobs: dict[Digest, Descriptor] = {}
        self._lock = trio.Lock()

    @property
    def folder(self) -> Path:
        """Where scratch files go: blobs are copied into the archive in any case."""
        return self._folder

    def prepare(self) -> None:
        """Begin the archive; raises InvalidInput, InvalidReference, StorageFailed. Synchronous."""
        if self._path.is_dir():
            raise InvalidInput(f"{self._path} is a folder, and no file", hint=f"for a layout: oci:{self._path}")
        plain = not self._path.exists() or self._path.is_file()
        if plain and not self._path.absolute().parent.is_dir():
            raise InvalidInput(f"{self._path.parent}: no such folder")
        self._file = Scratch(self._path.absolute().parent if plain else self._folder)
        self._add_small(MARKER, LAYOUT)

    async def has(self, blob: Descriptor) -> bool:
        """Whether it is in already."""
        return blob.digest in self._blobs

    async def put_blob(self, blob: Descriptor, path: Path, *, diff_id: Digest | None = None, given: bool = False) -> None:
        """Append a blob; raises StorageFailed."""
        await self._once(blob, lambda: self._add_file(blob, path))

    async def put_document(self, document: Descriptor, data: bytes) -> None:
        """Append a document; raises StorageFailed."""
        await self._once(document, lambda: self._add_small(blob_name(document.digest.hex), data))

    async def commit(self, images: Sequence[Published]) -> tuple[str, ...]:
        """Append the index, and give the archive its name; raises StorageFailed."""
        names = [with_suffix_of_tag(self.name, image.suffix) for image in images]
        entries = [entry(image.root, name) for image, name in zip(images, names, strict=True)]

        def work() -> None:
            self._add_small(INDEX, index_document(entries))
            if self._docker:
                listed = [_docker(image, name) for image, name in zip(images, names, strict=True)]
                self._add_small(_MANIFEST, encode_document_list(listed))
            self._end()

        with trio.CancelScope(shield=True):
            await self._in_thread(work)
        return tuple(names)

    def undo(self) -> None:
        """Nothing to remove: the file has no name. Synchronous."""
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _once(self, blob: Descriptor, work: Callable[[], None]) -> None:
        async with self._lock:  # a tar has one end
            if blob.digest not in self._blobs:
                await self._in_thread(work)
                self._blobs[blob.digest] = blob

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        def translated() -> Result:
            try:
                return work()
            except OSError as error:
                raise storage.failed(error, self._path) from error
            except StorageFailed as error:
                raise (storage.failed(error.__cause__, self._path) if isinstance(error.__cause__, OSError) else error) from error

        return await trio.to_thread.run_sync(translated)

    def _add_file(self, blob: Descriptor, path: Path) -> None:
        file = self._opened
        file.write(_header(blob_name(blob.digest.hex), blob.size))
        with path.open("rb", buffering=0) as source:
            if (copied := file.copy(source.fileno(), 0, blob.size)) != blob.size:
                raise BlobMismatch(f"{path} ended after {copied} of the {blob.size} bytes of {blob.digest}")
        file.write(bytes(-blob.size % _BLOCK))

    def _add_small(self, name: str, data: bytes) -> None:
        self._opened.write(_header(name, len(data)) + data + bytes(-len(data) % _BLOCK))

    def _end(self) -> None:
        file = self._opened
        file.write(bytes(2 * _BLOCK))
        file.write(bytes(-file.file.tell() % _RECORD))
        file.flush()
        if self._path.exists() and not self._path.is_file():
            with self._path.open("wb") as there:
                storage.copy_into(file.path, there)
        else:
            storage.publish(file, self._path.resolve())  # a symbolic link stays, what it leads to is replaced

    @property
    def _opened(self) -> Scratch:
        assert self._file is not None, "prepare comes first"
        return self._file


def encode_document_list(values: Sequence[dict[str, Any]]) -> bytes:
    """A JSON list."""
    return b"[" + b",".join(map(encode_document, values)) + b"]"


def _docker(image: Published, name: str) -> dict[str, Any]:
    if not is_manifest(image.root.media_type):
        raise InvalidInput(
            "a Docker archive has no place for several platforms", hint="choose one with --platform, or write an oci-archive"
        )
    config, layers = references(image.root, image.data)
    assert config is not None
    return {
        "Config": blob_name(config.digest.hex),
        "RepoTags": [tagged] if (tagged := _tagged(name)) else None,
        "Layers": [blob_name(layer.digest.hex) for layer in layers],
    }


def _tagged(name: str) -> str:
    """Repository and tag as Docker shows them; empty for what is neither."""
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return ""
    return replace(reference, digest=None).familiar if reference.tag else ""


def _header(name: str, size: int) -> bytes:
    # No times, no owners: the same image makes the same archive.
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)  # sizes over 8 GiB
