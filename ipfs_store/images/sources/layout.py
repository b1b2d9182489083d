"""OCI image layouts (image-spec, image-layout.md), as a folder or in a tar: which image of ``index.json``, and its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ipfs_store.errors import ImageNotFound, InvalidInput, InvalidReference
from ipfs_store.images.referrers import COSIGN_SUFFIXES, fallback_tag
from ipfs_store.images.sources.files import Files
from ipfs_store.images.sources.stored import StoredImage
from ipfs_store.oci import Descriptor, Digest, Index, Reference
from ipfs_store.oci.manifest import MAX_DOCUMENT, decode_document, encode_document
from ipfs_store.oci.media_types import OCI_INDEX, is_index, is_manifest

_CONTAINERD_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_REFERRER_TAG = re.compile(r"sha256-[0-9a-f]{64}(\.[a-z]+)?")
_SHOWN = 20


def open_layout(files: Files, wanted: str = "") -> StoredImage:
    """The image ``wanted`` (a name, a tag or a digest of ``index.json``) or the only one.

    Raises InvalidInput (no layout), InvalidDescriptor, ImageNotFound (none of that name; several, and no name given). Synchronous.
    """
    marker = files.read("oci-layout", MAX_DOCUMENT)
    if marker is not None:
        version = decode_document(marker, where=f"{files.where}: oci-layout").get("imageLayoutVersion")
        if not isinstance(version, str) or not version.startswith("1."):
            raise InvalidInput(f"{files.where} is an OCI layout of version {str(version)[:20]!r}; version 1 is known")
    data = files.read("index.json", MAX_DOCUMENT)
    if data is None:
        raise InvalidInput(f"{files.where} has no index.json: it is no OCI layout")
    index = Index.parse(data, where=f"{files.where}: index.json", media_type=OCI_INDEX)
    images = [item for item in index.manifests if is_index(item.media_type) or is_manifest(item.media_type)]
    if not images:
        raise ImageNotFound(f"{files.where} has no image in it: its index.json lists none")
    name, chosen = _choose(images if wanted else _without_referrers(images), wanted, files.where)
    if len(chosen) == 1:
        return LayoutImage(files, name, _without_names(chosen[0]), {}, images)
    # Manifests of several platforms side by side: the index that they would have elsewhere is made.
    made = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [item.to_json() for item in chosen]})
    root = Descriptor(OCI_INDEX, Digest.of(made), len(made))
    return LayoutImage(files, name, root, {root.digest: made}, images)


class LayoutImage(StoredImage):
    """An image of a layout, which may have others that refer to it."""

    def __init__(self, files: Files, name: str, root: Descriptor, made: Mapping[Digest, bytes], listed: Sequence[Descriptor]) -> None:
        """``listed``: everything in ``index.json``."""
        super().__init__(files, name, root, made, {})
        self._listed = listed

    async def referrers(self, subject: Digest) -> Sequence[Descriptor]:
        """See ``referrers.Referring``: by their ``subject``, by the tag of a list of them, by cosign's tags."""
        tag = fallback_tag(subject)
        found: list[Descriptor] = []
        for item in self._listed:
            label = item.annotations.get(_REF_NAME, "").rpartition(":")[2]
            if label == tag and is_index(item.media_type):
                found += Index.parse(await self.fetch(item), media_type=item.media_type).manifests
            elif (is_manifest(item.media_type) or is_index(item.media_type)) and (
                label in {tag + suffix for suffix in COSIGN_SUFFIXES} or await self._subject(item) == str(subject)
            ):
                found.append(item)
        return [_without_names(item) for item in {item.digest: item for item in found}.values()]

    async def _subject(self, item: Descriptor) -> str:
        document = decode_document(await self.fetch(item), where=f"{item.media_type[:100]} {item.digest}")
        about = document.get("subject")
        return str(about.get("digest", "")) if isinstance(about, dict) else ""


def _without_referrers(images: Sequence[Descriptor]) -> Sequence[Descriptor]:
    """Without what says that it is no image but belongs to one; all, if that leaves none."""
    found = [item for item in images if not _REFERRER_TAG.fullmatch(_label(item).rpartition(":")[2]) and "artifactType" not in item.extra]
    return found or images


def _choose(images: Sequence[Descriptor], wanted: str, where: str) -> tuple[str, list[Descriptor]]:
    """The full name, empty if none, and what goes by it."""
    if wanted:
        found = [item for item in images if _is_called(item, wanted)]
        if not found:
            raise ImageNotFound(f"{where} has no image {wanted[:200]!r}; it has {_listed(images)}")
        return full_name(found[0].annotations), _unique(found)
    names = {label for item in images if (label := _label(item))}
    named = [item for item in images if _label(item)] or list(images)  # beside named images, what has no name is a signature or the like
    if len(names) > 1 and len({item.digest for item in named}) > 1:
        raise ImageNotFound(f"{where} has several images: {_listed(named)}", hint=f"choose one: {where}:NAME")
    return full_name(named[0].annotations), _unique(named)


def full_name(annotations: Mapping[str, str]) -> str:
    """The image's name with registry and tag; empty where only a tag, or nothing, is said."""
    if name := annotations.get(_CONTAINERD_NAME):
        return _full(name) or name
    return _full(annotations.get(_REF_NAME, ""))


def _without_names(image: Descriptor) -> Descriptor:
    """A tag of a layout (``latest``) is no name outside of it; whoever has a full name says it anew."""
    kept = {key: value for key, value in image.annotations.items() if key not in (_CONTAINERD_NAME, _REF_NAME)}
    return replace(image, annotations=kept)


def _full(text: str) -> str:
    if "/" not in text and ":" not in text:
        return ""  # a tag
    try:
        return str(Reference.parse(text))
    except InvalidReference:
        return ""


def _is_called(item: Descriptor, wanted: str) -> bool:
    names = {item.annotations.get(_CONTAINERD_NAME, ""), item.annotations.get(_REF_NAME, "")} - {""}
    return wanted in names or wanted == str(item.digest) or (bool(_full(wanted)) and _full(wanted) in map(_full, names))


def _label(item: Descriptor) -> str:
    return item.annotations.get(_CONTAINERD_NAME) or item.annotations.get(_REF_NAME, "")


def _unique(images: Sequence[Descriptor]) -> list[Descriptor]:
    return list({item.digest: item for item in reversed(images)}.values())[::-1]


def _listed(images: Sequence[Descriptor]) -> str:
    names = list(dict.fromkeys(_label(item) or str(item.digest) for item in images))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
