"""From what a person writes to a target: explicit prefixes, else a path by its look, else a name of a registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import cast

import trio

from ipfs_store.errors import InvalidInput
from ipfs_store.extensions import entry_points, load
from ipfs_store.images.targets.interface import Target, TargetOptions

EXTENSIONS = "ipfs_store.targets"
KINDS = ("oci", "oci-archive", "docker-archive", "docker")
"""Prefixes (``docker://`` for a registry); those of entry points come on top."""
_BROUGHT = ("containerd",)  # by the other package of ours: without it, such a name must not become one of Docker's registry
_COMPRESSED = (".tgz", ".tzst", ".txz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2")


@asynccontextmanager
async def open_target(text: str, options: TargetOptions | None = None) -> AsyncIterator[Target]:
    """The place that ``text`` names. If the context ends without a ``commit``, what was written is undone.

    ``oci:FOLDER[:NAME]``, ``oci-archive:FILE[:NAME]``, ``docker-archive:FILE[:NAME]``, ``docker://REFERENCE``, ``containerd:NAME`` (and
    whatever entry points of ``ipfs_store.targets`` bring), or without a prefix a path (``.tar``: an OCI archive; a folder: a layout) or a
    registry's reference. Raises InvalidInput, RegistryUnavailable, StorageFailed.
    """
    options = options or TargetOptions()
    kind, rest = _split_kind(text)
    if not rest:
        raise InvalidInput("no target is named", hint="an archive, a layout's folder, or a name such as registry.example/app:1")
    if kind == "docker":
        from ipfs_store.images.targets.registry import registry_target  # httpx: 85 ms that an archive does not need

        opened: AbstractAsyncContextManager[Target] = registry_target(rest, options)
    elif kind in KINDS:
        opened = _local(kind, rest, options)
    else:
        opened = _extension(kind)(rest, options)
    async with opened as target:
        yield target


@asynccontextmanager
async def _local(kind: str, text: str, options: TargetOptions) -> AsyncIterator[Target]:
    from ipfs_store.images.targets.archive import ArchiveTarget
    from ipfs_store.images.targets.layout import LayoutTarget

    path, _, name = text.partition(":")
    target = (
        LayoutTarget(Path(path), name, options)
        if kind == "oci"
        else ArchiveTarget(Path(path), name, options, docker=kind == "docker-archive")
    )
    await trio.to_thread.run_sync(target.prepare)
    try:
        yield target
    finally:
        target.undo()


def _split_kind(text: str) -> tuple[str, str]:
    kind, separator, rest = text.partition(":")
    if separator and kind == "docker" and rest.startswith("//"):
        return kind, rest[2:]
    if separator and kind in KINDS and kind != "docker":
        return kind, rest
    if separator and (kind in entry_points(EXTENSIONS) or kind in _BROUGHT):
        return kind, rest.removeprefix("//")
    path = text.partition(":")[0]
    if path.lower().endswith(_COMPRESSED):
        raise InvalidInput(f"{path} would be a compressed archive; its layers are compressed already", hint="name it .tar")
    if path.lower().endswith((".tar", ".oci")):
        return "oci-archive", text
    if path.endswith("/") or Path(path).is_dir():
        return "oci", text
    if path.startswith(("/", "./", "../", "~")):
        raise InvalidInput(f"{path[:300]}: an archive or a layout?", hint=f"oci-archive:{path[:300]} or oci:{path[:300]}")
    return "docker", text


def _extension(kind: str) -> Callable[[str, TargetOptions], AbstractAsyncContextManager[Target]]:
    target = entry_points(EXTENSIONS).get(kind)
    if target is None:
        raise InvalidInput(f"nothing that is installed writes images to {kind!r}", hint="pip install 'ipfs-store[snapshotter]'")
    try:
        return cast("Callable[[str, TargetOptions], AbstractAsyncContextManager[Target]]", load(target))
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"{kind}: {target} cannot be loaded: {error}", hint="pip install 'ipfs-store[snapshotter]'") from error
