"""What refers to an image by its digest: signatures, SBOMs, attestations (distribution-spec, "Listing Referrers"; image-spec, "subject")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ipfs_store.cids import Cid, parse_cid
from ipfs_store.errors import InvalidDag, InvalidDescriptor, InvalidInput
from ipfs_store.images.model import Image
from ipfs_store.images.pull import RemoteImage, fetch_document, fetch_root
from ipfs_store.images.root import ROOT_ANNOTATION
from ipfs_store.nodes.interface import Blocks
from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.manifest import Index, Manifest
from ipfs_store.oci.media_types import is_index, is_manifest

COSIGN_SUFFIXES = (".sig", ".att", ".sbom")
"""Of tags ``sha256-HEX.sig``, under which cosign keeps what refers to HEX where it does not use ``subject``."""
_MOST = 1_000


@runtime_checkable
class Referring(Protocol):
    """A source of images that knows what refers to them."""

    async def referrers(self, subject: Digest) -> Sequence[Descriptor]:
        """Manifests and indexes that refer to ``subject``, each once; raises as ``Image.fetch`` does."""
        ...


@dataclass(frozen=True, slots=True)
class Carried:
    """What a manifest or an index is made of."""

    artifact_type: str
    blobs: tuple[Descriptor, ...]
    """Of a manifest its config and what it carries, of an index its manifests and theirs, each once."""
    documents: Mapping[Digest, bytes] = field(default_factory=dict, repr=False, hash=False)
    """Those of ``blobs`` that are manifests and indexes."""


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest or index that refers to another."""

    subject: Digest
    descriptor: Descriptor
    data: bytes
    carried: Carried


async def collect_referrers(image: Image, subjects: Iterable[Digest], listed: Sequence[Descriptor] = ()) -> list[Referrer]:
    """All that refers to ``subjects``, and what refers to that; ``listed``: what stands beside them in their index, attestations among it.

    Raises InvalidInput where the source does not know, and what it raises.
    """
    if not isinstance(image, Referring):
        raise InvalidInput("this source does not tell what refers to an image", hint="registries and OCI layouts do")
    waiting = list(dict.fromkeys(subjects))
    found: dict[Digest, Referrer] = {}
    seen = set(waiting)
    while waiting:
        subject = waiting.pop(0)
        attestations = [item for item in listed if item.attests == subject]
        for descriptor in [*attestations, *await image.referrers(subject)]:
            if descriptor.digest in seen:
                continue
            seen.add(descriptor.digest)
            if len(found) == _MOST:
                raise InvalidDescriptor(f"more than {_MOST} manifests and indexes refer to {image.root.digest}")
            data = await image.fetch(descriptor)
            found[descriptor.digest] = Referrer(subject, descriptor, data, await _carried(image.fetch, descriptor, data))
            waiting.append(descriptor.digest)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class RemoteReferrer:
    """A referrer that lies in IPFS beside its image."""

    subject: Digest
    artifact_type: str
    descriptor: Descriptor
    data: bytes
    blobs: Mapping[Descriptor, Cid]
    """`Carried.blobs`, and where they are."""


async def fetch_referrers(blocks: Blocks, image: RemoteImage, *, timeout: float | None = None) -> list[RemoteReferrer]:
    """What was pushed with ``image``, each manifest checked; empty for an image without a root. Raises as ``pull.resolve`` does."""

    async def get(cid: Cid) -> bytes:
        return await blocks.get(cid, timeout=timeout)

    root, named = image.root, image.descriptor.annotations.get(ROOT_ANNOTATION)
    if root is None and named:
        root = await fetch_root(get, parse_cid(named))
    found: list[RemoteReferrer] = []
    for referrer in root.referrers if root is not None else ():
        places = {blob.digest: blob.cid for blob in referrer.blobs}

        def place(item: Descriptor, places: Mapping[Digest, Cid] = places, digest: Digest = referrer.blob.digest) -> Cid:
            if item.digest not in places:
                raise InvalidDag(f"the image root does not link all that referrer {digest} carries")
            return places[item.digest]

        async def read(item: Descriptor, place: Callable[[Descriptor], Cid] = place) -> bytes:
            return await fetch_document(get, item, place(item))

        data = await fetch_document(get, referrer.blob.descriptor, referrer.blob.cid)
        carried = await _carried(read, referrer.blob.descriptor, data)
        blobs = {item: place(item) for item in carried.blobs}
        found.append(RemoteReferrer(referrer.subject, carried.artifact_type, referrer.blob.descriptor, data, blobs))
    return found


def fallback_tag(subject: Digest) -> str:
    """Under which registries without the referrers API keep the list (distribution-spec, "Referrers Tag Schema")."""
    return f"sha256-{subject.hex}"


async def _carried(fetch: Callable[[Descriptor], Awaitable[bytes]], descriptor: Descriptor, data: bytes) -> Carried:
    """What the manifest or index ``data`` is made of; ``fetch`` gives what an index lists, checked."""
    blobs: dict[Descriptor, None] = {}
    documents = {descriptor.digest: data}
    waiting = [descriptor]
    artifact_type = ""
    while waiting:
        item = waiting.pop()
        where = f"referrer {item.digest}"
        if item.digest not in documents:
            if len(documents) > _MOST:
                raise InvalidDescriptor(f"referrer {descriptor.digest} lists more than {_MOST} manifests and indexes")
            documents[item.digest] = await fetch(item)
        if is_index(item.media_type):
            index = Index.parse(documents[item.digest], where=where, media_type=item.media_type)
            kind, parts = index.artifact_type, index.manifests
            waiting += [part for part in reversed(parts) if part.digest not in documents]
        elif is_manifest(item.media_type):
            manifest = Manifest.parse(documents[item.digest], where=where, media_type=item.media_type)
            kind, parts = manifest.artifact_type, (manifest.config, *manifest.layers)
        else:
            raise InvalidDescriptor(f"{where} is a {item.media_type[:100]}, neither manifest nor index")
        artifact_type = artifact_type or kind
        blobs |= dict.fromkeys(parts)
    del documents[descriptor.digest]
    return Carried(artifact_type, tuple(blobs), documents)
