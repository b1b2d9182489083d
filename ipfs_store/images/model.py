"""What an image is to those who move it, wherever it comes from; and how far a move has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ipfs_store.cids import Cid
from ipfs_store.formats.blob import Output, RangeReader, Readable
from ipfs_store.oci import Descriptor, Digest

if TYPE_CHECKING:
    from ipfs_store.images.root import RootToc


class Image(Protocol):
    """An image of a source (archive, layout, registry, containerd); every byte it gives was checked against digest and size."""

    @property
    def name(self) -> str:
        """The full name (``docker.io/library/debian:12``), empty where the source has none."""
        ...

    @property
    def root(self) -> Descriptor:
        """The index or manifest."""
        ...

    async def fetch(self, descriptor: Descriptor) -> bytes:
        """A small blob (index, manifest, config); raises ImageNotFound, BlobMismatch."""
        ...

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Path]:
        """A layer as a local file, whole and verified, there until the context ends; raises ImageNotFound, BlobMismatch."""
        ...

    async def aclose(self) -> None:
        """Remove what was made to read the image."""
        ...


class Incoming(Readable, Protocol):
    """A layer before all of it was checked, or is there. What is made of it is nobody else's until ``checked`` has returned."""

    @property
    def ranges(self) -> RangeReader:
        """Parts of it, which may lie anywhere; not checked."""
        ...

    async def checked(self) -> Path:
        """The layer as a local file, whole and verified; waits until it is. Raises BlobMismatch, ImageNotFound and what the source raises."""
        ...


class Sink(Protocol):
    """A blob that is being written, its digest not known before its end; gone when it is closed, unless it was kept before."""

    @property
    def file(self) -> Output:
        """Takes the bytes, in a thread."""
        ...

    @property
    def path(self) -> Path | None:
        """Where they can be read again; None: they went to the target, and nowhere else."""
        ...

    def flush(self) -> None:
        """Raises StorageFailed and what is the target's own where they could not be written. Synchronous, as is ``close``."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


MakeSink = Callable[[], Sink]
"""Synchronous."""


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """A layer in its new form, there as long as the context of whoever converted it lasts."""

    path: Path | None
    """None: only ``sink`` has the bytes."""
    media_type: str
    digest: Digest
    size: int
    diff_id: Digest | None
    """None: that of the layer before, which stays byte for byte what it was and only gets more annotations."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    toc: bytes = b""
    """The blob of its table of contents, where that is in an image of its own."""
    same_tar: bool = False
    """Whether the uncompressed tar is still that of the layer before, so that the DiffID has to be too."""
    sink: Sink | None = None
    """What it was written to, if it was written."""


class Convert(Protocol):
    """Makes another form of a layer; None where the layer is to stay as it is."""

    def __call__(
        self, layer: Descriptor, source: Incoming, sink: MakeSink | None = None, /
    ) -> AbstractAsyncContextManager[ConvertedLayer | None]:
        """``sink`` makes what the new form is written to, a file if None. Raises InvalidLayer, StorageFailed, what source and sink raise."""
        ...


@dataclass(frozen=True, slots=True)
class TocObject:
    """A layer's TOC as an object of its own (`formats.detached`)."""

    digest: Digest
    """Of the uncompressed TOC."""
    raw_size: int
    """Bytes of the uncompressed TOC."""
    data: bytes = field(repr=False)
    """The object."""


@dataclass(frozen=True, slots=True)
class PushedLayer:
    """A layer as it lies in the node now."""

    descriptor: Descriptor
    cid: Cid
    converted: bool
    toc: RootToc | None = None
    diff_id: Digest | None = None
    """Where the conversion made another one than the config has."""


class Progress(Protocol):
    """Told how far each item (a layer, a document) has come; the command line draws it."""

    def begin(self, item: str, action: str, total: int) -> None:
        """``action`` (``convert``, ``push``, ``fetch``) of ``item`` starts; ``total`` bytes."""
        ...

    def advance(self, item: str, count: int) -> None:
        """``count`` bytes more."""
        ...

    def done(self, item: str, note: str = "") -> None:
        """It is finished."""
        ...


class NoProgress:
    """For callers that show nothing."""

    def begin(self, item: str, action: str, total: int) -> None:
        """Nothing."""

    def advance(self, item: str, count: int) -> None:
        """Nothing."""

    def done(self, item: str, note: str = "") -> None:
        """Nothing."""
