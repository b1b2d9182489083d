"""Registries: what is there already is not sent, what another repository of theirs has is taken from it, manifests come last."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfs_store.errors import InvalidReference
from ipfs_store.images.sources.session import connect
from ipfs_store.images.targets.interface import Published, Target, TargetOptions, with_suffix
from ipfs_store.images.targets.upload import Uploads
from ipfs_store.oci import Descriptor, Digest, Reference
from ipfs_store.oci.media_types import is_index, is_manifest


@asynccontextmanager
async def registry_target(text: str, options: TargetOptions) -> AsyncIterator[Target]:
    """The repository and tag that ``text`` names; raises InvalidReference, RegistryUnavailable (no answer, no permission)."""
    reference = Reference.parse(text)
    if reference.digest is not None:
        raise InvalidReference(f"{text} names a digest, which only the finished image has", hint="name a tag")
    session = await connect(reference, options.credentials, plain_http=options.plain_http, write=True)
    try:
        yield RegistryTarget(reference, Uploads(session), options)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await session.aclose()


class RegistryTarget:
    """See ``targets.interface.Target``. Nothing has to be undone: blobs that no manifest names are collected by the registry."""

    one_platform = False
    in_order = False
    keeps_ipfs_urls = False

    def __init__(self, reference: Reference, uploads: Uploads, options: TargetOptions) -> None:
        self.name = str(reference)
        self._reference = reference
        self._uploads = uploads
        self._options = options
        source = options.mount_from
        self._source = source if source is not None and (source.domain, source.path) != (reference.domain, reference.path) else None
        self._there: set[Digest] = set()
        self._missing: set[Digest] = set()

    @property
    def folder(self) -> Path:
        """Where scratch files go."""
        return self._options.folder

    async def has(self, blob: Descriptor) -> bool:
        """Whether the repository has it, or takes it from the one that the image comes from."""
        if blob.digest not in self._there:
            if not await self._uploads.has(blob):
                source = self._source
                if source is None or source.domain != self._reference.domain or not await self._uploads.mount(blob, source):
                    self._missing.add(blob.digest)
                    return False
            self._there.add(blob.digest)
        return True

    async def put_blob(self, blob: Descriptor, path: Path, *, diff_id: Digest | None = None, given: bool = False) -> None:
        """Send a blob unless it is there; raises RegistryUnavailable."""
        if blob.digest in self._there or (blob.digest not in self._missing and await self._uploads.has(blob)):
            return
        progress, item = self._options.progress, str(blob.digest)
        progress.begin(item, "push", blob.size)
        await self._uploads.put_blob(blob, path, lambda count: progress.advance(item, count))
        progress.done(item)
        self._there.add(blob.digest)

    async def put_document(self, document: Descriptor, data: bytes) -> None:
        """Send a config, or a manifest by its digest; raises RegistryUnavailable."""
        if is_index(document.media_type) or is_manifest(document.media_type):
            await self._uploads.put_manifest(document, data, str(document.digest))
        elif not await self._uploads.has(document):
            await self._uploads.put_small(document, data)

    async def commit(self, images: Sequence[Published]) -> tuple[str, ...]:
        """Make the tag mean the image; raises RegistryUnavailable."""
        names = [with_suffix(self.name, image.suffix) for image in images]
        for image, name in zip(images, names, strict=True):
            await self._uploads.put_manifest(image.root, image.data, Reference.parse(name).tag)
        return tuple(names)
