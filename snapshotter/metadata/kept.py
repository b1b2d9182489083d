"""The folder of metadata images and indexes, one pair for each TOC and scope, built once and kept.

``KEY/metadata.erofs`` and ``KEY/contents.index``; a folder gets its name when both are complete. The index has the checksums of both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.erofs import merge_trees, read_image, write_image
from ipfs_store.errors import StorageFailed
from ipfs_store.formats.document import decode_document
from ipfs_store.formats.entries import decode_toc
from ipfs_store.formats.footer import TocLocation
from snapshotter.metadata.build import build_tree
from snapshotter.metadata.contentid import Scope
from snapshotter.metadata.index import ContentIndex, Contents, encode_index, of_image

IMAGE = "metadata.erofs"
INDEX = "contents.index"
_FORMAT = b"metadata 1\0"  # to be changed with anything that changes what is built from a TOC
_TMP = "tmp."


@dataclass(frozen=True, slots=True)
class Job:
    """A layer to be built: all values, so that it can be sent to another process."""

    folder: Path
    """Where it is to appear."""
    location: TocLocation
    toc: bytes
    """The TOC's JSON, verified."""
    scope: Scope
    layer: str
    """The TOC's digest or the blob's CID."""


@dataclass(frozen=True, slots=True)
class ChainJob:
    """One image to be made of those of a chain of layers."""

    folder: Path
    """Where it is to appear."""
    images: tuple[Path, ...]
    """The lowest first."""

    @property
    def layer(self) -> str:
        """For messages."""
        return f"a chain of {len(self.images)} layers"


class KeptMetadata:
    """What was built, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def folder_of(self, layer: str, scope: Scope) -> Path:
        """Where the metadata of a layer are, or will be. ``layer``: the TOC's digest or, if that is not known, the blob's CID."""
        return self.folder / hashlib.sha256(_FORMAT + scope + layer.encode()).hexdigest()

    def folder_of_chain(self, images: Sequence[Path]) -> Path:
        """Where the image of a chain of layers is, or will be."""
        return self.folder / hashlib.sha256(_FORMAT + b"chain\0" + "\0".join(image.parent.name for image in images).encode()).hexdigest()

    def find(self, layer: str, scope: Scope) -> tuple[Path, ContentIndex] | None:
        """The image and the index if they are here; the index is mapped. Raises StorageFailed where they cannot be read."""
        folder = self.folder_of(layer, scope)
        try:
            index = ContentIndex.open(folder / INDEX)
            os.utime(folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageFailed(f"{folder / INDEX} cannot be read: {error.strerror}") from error
        return (folder / IMAGE, index) if (folder / IMAGE).exists() else None

    def has(self, folder: Path) -> bool:
        """Whether the image of a chain is here; it is used now."""
        try:
            os.utime(folder)
        except FileNotFoundError:
            return False
        return (folder / IMAGE).exists()

    def files(self, but: Container[str]) -> list[tuple[float, int, Path]]:
        """(when used last, bytes, path) of every file, but for those of the layers whose keys are in ``but``."""
        found = []
        for folder in self.folder.glob("[!t]*"):
            if folder.name not in but:
                with contextlib.suppress(FileNotFoundError):
                    used = folder.stat().st_mtime
                    found += [(used, path.stat().st_size, path) for path in (folder / INDEX, folder / IMAGE) if path.exists()]
        return found

    def touch(self, key: str) -> None:
        """The layer was in use until now."""
        with contextlib.suppress(OSError):  # evicted, or the disk cannot be written: it may then go a little earlier
            os.utime(self.folder / key)

    def used(self) -> list[tuple[float, str]]:
        """(when used last in seconds, key) of all that is here."""
        found = []
        for path in self.folder.glob("[!t]*"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path.name))
        return found

    def index(self, key: str) -> ContentIndex | None:
        """The index, mapped; None if it is not here or cannot be read."""
        try:
            return ContentIndex.open(self.folder / key / INDEX)
        except (OSError, StorageFailed):
            return None

    def indexes(self) -> list[ContentIndex]:
        """Every index that is here, mapped; those that cannot be read are left out."""
        return [index for _, key in self.used() if (index := self.index(key)) is not None]

    def drop_unsound(self) -> int:
        """Hash all, and delete what is not as it was written; how many. They were not synced: a power failure may have cut them short."""
        dropped = 0
        for folder in self.folder.glob("[!t]*"):
            if not _is_sound(folder):
                shutil.rmtree(folder)
                dropped += 1
        return dropped

    def clear(self) -> None:
        """Delete what builders that were killed left half-done."""
        for path in self.folder.glob(f"{_TMP}*"):
            if not Path("/proc", path.name.split(".")[1]).exists():
                shutil.rmtree(path, ignore_errors=True)


def _is_sound(folder: Path) -> bool:
    try:
        index = ContentIndex.open(folder / INDEX)
        with (folder / IMAGE).open("rb") as file:
            return index.is_sound() and hashlib.file_digest(file, "sha256").digest() == index.image_digest
    except (OSError, StorageFailed):
        return False


def build(job: Job) -> None:
    """Do the job: 0.4 s of CPU for 30,000 entries, a third of it in a process beside this one (`scripts/bench stages`). Raises InvalidLayer, StorageFailed."""
    from snapshotter.metadata.beside import gathering  # brings multiprocessing along, for workers only

    location = job.location
    toc = decode_toc(decode_document(job.toc), kind=location.kind, digest=job.layer, payload_end=location.payload_end)
    with gathering(toc.entries, scope=job.scope, layer=job.layer, kind=location.kind) as beside:
        tree = build_tree(toc)
        image = write_image(tree.root, redirect=lambda: tree.lead(beside.redirects()))
        index = beside.index()
    write_pair(job.folder, image, of_image(index, image))


def build_chain(job: ChainJob) -> None:
    """Do the job: 0.4 s of CPU for 30,000 entries. Its index is empty: contents are looked for in those of the layers. Raises StorageFailed."""
    try:
        images = [path.read_bytes() for path in job.images]
    except OSError as error:
        raise StorageFailed(f"{error.filename} cannot be read: {error.strerror}") from error
    image = write_image(merge_trees([read_image(data) for data in images]))
    write_pair(job.folder, image, encode_index(Contents(), kind="estargz", entries=0, image=image))


def write_pair(folder: Path, image: bytes, index: bytes) -> None:
    """Make ``folder`` appear with both files, or leave the one that is there already; raises StorageFailed."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{_TMP}{os.getpid()}.", dir=folder.parent))
        try:
            for name, data in ((IMAGE, image), (INDEX, index)):
                (scratch / name).write_bytes(data)
            _rename(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise StorageFailed(
            f"the metadata of a layer cannot be kept in {folder.parent}: {error.strerror}", hint="is the disk full?"
        ) from error


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # Another builder was faster: ENOTEMPTY, the same bytes. Or some of it was evicted.
        for name in (IMAGE, INDEX):
            if not (target / name).exists():
                (source / name).rename(target / name)
