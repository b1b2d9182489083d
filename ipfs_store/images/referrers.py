"""What refers to an image by its digest: signatures, SBOMs, attestations (distribution-spec, "Listing Referrers"; image-spec, "subject")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
        """Manifests that refer to ``subject``, each once; raises as ``Image.fetch`` does."""
        ...


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to another."""

    subject: Digest
    descriptor: Descriptor
    data: bytes
    artifact_type: str
    blobs: tuple[Descriptor, ...]
    """Its config and what it carries, each once."""


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
                raise InvalidDescriptor(f"more than {_MOST} manifests refer to {image.root.digest}")
            found[descriptor.digest] = await _read(image, subject, descriptor)
            waiting.append(descriptor.digest)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class RemoteReferrer:
    """A referrer that lies in IPFS beside its image."""

    subject: Digest
    manifest: Manifest
    descriptor: Descriptor
    data: bytes
    blobs: Mapping[Descriptor, Cid]
    """Its config and what it carries, and where they are."""


async def fetch_referrers(blocks: Blocks, image: RemoteImage, *, timeout: float | None = None) -> list[RemoteReferrer]:
    """What was pushed with ``image``, each manifest checked; empty for an image without a root. Raises as ``pull.resolve`` does."""

    async def get(cid: Cid) -> bytes:
        return await blocks.get(cid, timeout=timeout)

    root, named = image.root, image.descriptor.annotations.get(ROOT_ANNOTATION)
    if root is None and named:
        root = await fetch_root(get, parse_cid(named))
    found: list[RemoteReferrer] = []
    for referrer in root.referrers if root is not None else ():
        data = await fetch_document(get, referrer.blob.descriptor, referrer.blob.cid)
        manifest = Manifest.parse(data, where=f"referrer {referrer.blob.digest}", media_type=referrer.blob.media_type)
        places = {blob.digest: blob.cid for blob in referrer.blobs}
        listed = (manifest.config, *manifest.layers)
        if not all(item.digest in places for item in listed):
            raise InvalidDag(f"the image root does not link all that referrer {referrer.blob.digest} carries")
        blobs = {item: places[item.digest] for item in listed}
        found.append(RemoteReferrer(referrer.subject, manifest, referrer.blob.descriptor, data, blobs))
    return found


def fallback_tag(subject: Digest) -> str:
    """Under which registries without the referrers API keep the list (distribution-spec, "Referrers Tag Schema")."""
    return f"sha256-{subject.hex}"


async def _read(image: Image, subject: Digest, descriptor: Descriptor) -> Referrer:
    data = await image.fetch(descriptor)
    where = f"referrer {descriptor.digest}"
    if is_index(descriptor.media_type):
        document = Index.parse(data, where=where, media_type=descriptor.media_type).document
        raise InvalidDescriptor(f"{where} is an index ({document.get('artifactType', 'no artifact type')}); only manifests are taken along")
    if not is_manifest(descriptor.media_type):
        raise InvalidDescriptor(f"{where} is a {descriptor.media_type[:100]}, and no manifest")
    manifest = Manifest.parse(data, where=where, media_type=descriptor.media_type)
    return Referrer(subject, descriptor, data, manifest.artifact_type, tuple(dict.fromkeys((manifest.config, *manifest.layers))))
