"""From what a person writes to an image: explicit prefixes, else what the path holds, else a name of a registry."""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import trio

from ipfs_store.cids import Cid, parse_cid
from ipfs_store.errors import ImageNotFound, InvalidInput
from ipfs_store.extensions import entry_points, load
from ipfs_store.images.model import Image
from ipfs_store.images.sources.options import SourceOptions

EXTENSIONS = "ipfs_store.sources"
KINDS = ("oci", "oci-archive", "docker-archive", "docker", "ipfs")
"""Prefixes (``docker://`` for a registry, ``ipfs://`` for a CID); those of entry points come on top."""
_CID = re.compile(r"b[a-z2-7]{58,}|Qm[1-9A-HJ-NP-Za-km-z]{44}")  # no registry has a repository of such a name by chance
_ARCHIVES = (".tar", ".tgz", ".tzst", ".txz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2", ".oci")


@asynccontextmanager
async def open_image(text: str, *, kind: str | None = None, options: SourceOptions | None = None) -> AsyncIterator[Image]:
    """The image that ``text`` names, closed at the end.

    ``oci:FOLDER[:NAME]``, ``oci-archive:FILE[:NAME]``, ``docker-archive:FILE[:NAME]``, ``docker://REFERENCE``, ``ipfs://CID``,
    ``containerd:NAME`` (and whatever entry points of ``ipfs_store.sources`` bring), or without a prefix a path, whose contents tell what it is, a CID, or a
    registry's reference. ``kind`` is the prefix, given apart.

    Raises InvalidInput and its kin for what is none of these, ImageNotFound, RegistryUnavailable, BlobMismatch, StorageFailed.
    """
    options = options or SourceOptions()
    found = await trio.to_thread.run_sync(_open, kind, text, options)
    if isinstance(found, bytes):
        from ipfs_store.images.sources.ipfs import open_ipfs_image

        image: Image = await open_ipfs_image(Cid(found), options)
    else:
        image = await _registry(found, options) if isinstance(found, str) else found
    try:
        yield image
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await image.aclose()


def _open(kind: str | None, text: str, options: SourceOptions) -> Image | str | Cid:
    """The image, the reference to ask a registry for, or the CID to ask a node for. Synchronous: it reads archives."""
    if kind is None:
        kind, text = _split_kind(text)
    if not text:
        raise InvalidInput("no image is named", hint="an archive, a layout's folder, or a name such as debian:12")
    if kind == "docker":
        return text
    if kind == "ipfs":
        return parse_cid(text)
    if kind and kind not in KINDS:
        return _extension(kind, text, options)
    from ipfs_store.images.sources import local  # 40 ms that what is elsewhere does not need

    if kind == "oci":
        return local.open_folder(*_split_name(text, "folder"))
    if kind in ("oci-archive", "docker-archive"):
        return local.open_archive(*_split_name(text, "file"), options, docker=kind == "docker-archive")
    if _exists(text):
        return local.open_path(Path(text), "", options)
    if looks_like_a_cid(text):
        return parse_cid(text)
    path, _, name = text.partition(":")
    if not _looks_like_a_path(path):
        return text
    if name and _exists(path):
        return local.open_path(Path(path), name, options)
    raise ImageNotFound(f"{text[:300]}: no such file or folder")


def looks_like_a_cid(text: str) -> bool:
    """Whether ``text`` is meant to be a CID, and no name of an image."""
    return text.startswith(("ipfs://", "/ipfs/")) or _CID.fullmatch(text) is not None


def _split_kind(text: str) -> tuple[str, str]:
    kind, separator, rest = text.partition(":")
    if separator and not _exists(text):
        if kind == "ipfs":
            return (kind, rest[2:]) if rest.startswith("//") else ("", text)
        if kind == "docker":
            return (kind, rest[2:]) if rest.startswith("//") else ("", text)  # or it is docker.io/library/docker
        if kind in KINDS:
            return kind, rest
        if kind in entry_points(EXTENSIONS):
            return kind, rest.removeprefix("//")
    return "", text


def _split_name(text: str, what: str) -> tuple[Path, str]:
    """``PATH[:NAME]``; a path with a colon in it is tried as it stands first."""
    if _exists(text):
        return Path(text), ""
    path, _, name = text.partition(":")
    if not _exists(path):
        raise ImageNotFound(f"{path[:300]}: no such {what}")
    return Path(path), name


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a long reference
            return False
        raise


def _looks_like_a_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..") or text.lower().endswith(_ARCHIVES)


async def _registry(text: str, options: SourceOptions) -> Image:
    from ipfs_store.images.sources.registry import open_registry_image  # httpx: 85 ms that an archive does not need

    return await open_registry_image(text, options)


def _extension(kind: str, text: str, options: SourceOptions) -> Image:
    target = entry_points(EXTENSIONS).get(kind)
    if target is None:
        known = ", ".join([*KINDS, *sorted(entry_points(EXTENSIONS))])
        raise InvalidInput(f"no source of images is called {kind!r}", hint=f"there are {known}")
    try:
        opener = cast("Callable[[str, SourceOptions], Image]", load(target))
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"{kind}: {target} cannot be loaded: {error}", hint="pip install 'ipfs-store[snapshotter]'") from error
    return opener(text, options)
