"""Images in files and folders of this machine: what is there is told by its contents. Synchronous."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ipfs_store.errors import InvalidInput
from ipfs_store.images.model import Image
from ipfs_store.images.sources.docker import open_docker_archive
from ipfs_store.images.sources.files import Archive, Files, Folder
from ipfs_store.images.sources.layout import open_layout
from ipfs_store.images.sources.options import SourceOptions
from ipfs_store.images.sources.stored import StoredImage


def open_folder(path: Path, name: str) -> Image:
    """The image of a layout in a folder; raises InvalidInput, ImageNotFound, InvalidDescriptor, as all here."""
    if not path.is_dir():
        raise InvalidInput(f"{path} is no folder", hint=f"for a layout in a tar: oci-archive:{path}")
    return _opened(Folder(path), name, open_layout)


def open_archive(path: Path, name: str, options: SourceOptions, *, docker: bool) -> Image:
    """The image of an OCI archive, or of one that Docker made."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder, and no archive", hint=f"for a layout: oci:{path}")
    return _opened(Archive(path, options.folder), name, open_docker_archive if docker else open_layout)


def open_path(path: Path, name: str, options: SourceOptions) -> Image:
    """The image of whatever is at ``path``."""
    if path.is_dir():
        if not (path / "oci-layout").exists() and not (path / "index.json").exists():
            raise InvalidInput(f"{path} is a folder, but no OCI layout: it has neither oci-layout nor index.json")
        return _opened(Folder(path), name, open_layout)
    archive = Archive(path, options.folder)
    # `docker save` since 25 and `ctr image export` write both; the layout says more (media types, platforms).
    if "index.json" in archive and ("oci-layout" in archive or "manifest.json" not in archive):
        return _opened(archive, name, open_layout)
    if "manifest.json" in archive or "repositories" in archive:
        return _opened(archive, name, open_docker_archive)
    archive.close()
    raise InvalidInput(
        f"{path} is a tar, but no image: it has neither index.json nor manifest.json",
        hint="a root file system becomes an image with `umoci` or `docker import`",
    )


def _opened(files: Files, name: str, opener: Callable[[Files, str], StoredImage]) -> Image:
    try:
        return opener(files, name)
    except BaseException:
        files.close()
        raise
