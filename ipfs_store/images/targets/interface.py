"""What a place that images are written to does, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from ipfs_store.errors import InvalidInput
from ipfs_store.images.model import NoProgress, Progress, Sink
from ipfs_store.images.sources.options import scratch_folder
from ipfs_store.oci import Descriptor, Digest, Index, Reference
from ipfs_store.oci.manifest import Manifest
from ipfs_store.oci.media_types import is_index


@dataclass(frozen=True, slots=True)
class Published:
    """An image whose blobs and documents a target has, and that is to be seen there."""

    root: Descriptor
    """The index or manifest, one of the documents."""
    data: bytes
    suffix: str = ""
    """Of its tag, where it is not the image itself but one that belongs to it."""


class Target(Protocol):
    """A place for one conversion. Nothing is seen there before ``commit``; what the conversion leaves without it, the target undoes.

    Methods may be called by several tasks at a time, with another blob each.
    """

    @property
    def name(self) -> str:
        """The image's full name there; empty where it has none."""
        ...

    @property
    def folder(self) -> Path:
        """Where files of blobs are best made: if they lie there, they need not be copied."""
        ...

    @property
    def one_platform(self) -> bool:
        """Whether there is no place for an index."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether blobs are to come in the order of the manifests, one after the other, so that the same image makes the same bytes."""
        ...

    @property
    def keeps_ipfs_urls(self) -> bool:
        """Whether descriptors keep their ``ipfs://`` URLs: registries refuse manifests that have some, and archives end up there."""
        ...

    async def has(self, blob: Descriptor) -> bool:
        """Whether the blob is there, or could be taken from where the image comes from without passing through here."""
        ...

    async def put_blob(self, blob: Descriptor, path: Path, *, diff_id: Digest | None = None, given: bool = False) -> None:
        """Keep the blob in the file ``path``, whose bytes were checked. Raises StorageFailed and what is the target's own.

        ``diff_id``: of a layer. ``given``: the file is the target's from now on, to be linked where it shall stay instead of copied.
        """
        ...

    async def put_document(self, document: Descriptor, data: bytes) -> None:
        """Keep a config, manifest or index; what it refers to is there already."""
        ...

    async def commit(self, images: Sequence[Published]) -> tuple[str, ...]:
        """Make the images visible, the last one last; returns their names."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A target that takes a blob while it is made."""

    def sink(self) -> Sink:
        """A new blob, which nobody sees before it is kept. Synchronous. Raises what is the target's own."""
        ...

    async def keep(self, blob: Descriptor, sink: Sink, *, diff_id: Digest | None = None) -> None:
        """Keep what was written to ``sink``, which is ``blob``; raises BlobMismatch where it is not, StorageFailed, what is the target's own."""
        ...


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What a target may need; each takes what concerns it."""

    credentials: tuple[str, str] | None = field(default=None, repr=False)
    """User and password for the registry; None: those of Docker's and Podman's configuration."""
    plain_http: bool = False
    """Talk to the registry without TLS; to this machine that is always so."""
    mount_from: Reference | None = None
    """The repository that the image comes from; a registry that is the same takes blobs from there."""
    name: str = ""
    """The image's full name, where the target does not say another one."""
    address: str | None = None
    """containerd's socket, where it is the target."""
    namespace: str | None = None
    """containerd's namespace."""
    folder: Path = field(default_factory=scratch_folder)
    """Where blobs lie for a while."""
    progress: Progress = field(default_factory=NoProgress)


def with_suffix(name: str, suffix: str) -> str:
    """The full name ``name`` with ``suffix`` at its tag (estargz, "eStargz image with an external TOC"); raises InvalidInput."""
    if not suffix or not name:
        return name
    reference = Reference.parse(name)
    if not reference.tag:
        raise InvalidInput(f"{name} has no tag, and the image that belongs to it goes by the tag with {suffix!r}", hint="give it a tag")
    return f"{reference.domain}/{reference.path}:{reference.tag}{suffix}"


def references(document: Descriptor, data: bytes) -> tuple[Descriptor | None, tuple[Descriptor, ...]]:
    """(config, layers) of a manifest, (None, manifests) of an index; raises InvalidDescriptor."""
    if is_index(document.media_type):
        return None, Index.parse(data, media_type=document.media_type).manifests
    manifest = Manifest.parse(data, media_type=document.media_type)
    return manifest.config, manifest.layers
