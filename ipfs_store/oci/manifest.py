"""Manifests, indexes and configs: typed views of the JSON documents of an image (image-spec: manifest.md, image-index.md, config.md).

A view keeps the document it was parsed from. ``replace`` makes a new document that differs only in what was asked for, so that fields
of later specifications and of other tools survive; a document that is not replaced is written nowhere: its bytes are its identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipfs_store.errors import InvalidDescriptor, InvalidDigest
from ipfs_store.oci import media_types
from ipfs_store.oci.descriptor import Descriptor, Platform
from ipfs_store.oci.digest import Digest

# Registries must take manifests of 4 MiB (distribution-spec, "Pushing Manifests"); configs have no limit written down, the largest
# seen (long histories and labels) are under 200 KB.
MAX_DOCUMENT = 8 << 20
MAX_LAYERS = 10_000
MAX_MANIFESTS = 10_000


def decode_document(data: bytes, *, where: str) -> dict[str, Any]:
    """A JSON object of at most MAX_DOCUMENT bytes; raises InvalidDescriptor, whose message starts with ``where``."""
    if len(data) > MAX_DOCUMENT:
        raise InvalidDescriptor(f"{where}: {len(data)} bytes of JSON are over the limit of {MAX_DOCUMENT}")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a number of 5,000 digits
        raise InvalidDescriptor(f"{where}: not JSON: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise InvalidDescriptor(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def encode_document(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in the order of ``value``, as Go's encoder writes it but for its HTML escapes."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, legal in JSON as an escape only
        return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its config and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    document: Mapping[str, Any] = field(repr=False, hash=False)

    @classmethod
    def parse(cls, data: bytes, *, where: str = "manifest", media_type: str | None = None) -> Manifest:
        """Raises InvalidDescriptor. ``media_type`` is what the descriptor said; the document must not say otherwise."""
        document = decode_document(data, where=where)
        if "manifests" in document:  # image-spec, manifest.md: one document must not be taken for both
            raise InvalidDescriptor(f"{where}: has 'manifests' beside its layers")
        found = _media_type(document, media_type, media_types.OCI_MANIFEST, where)
        if not media_types.is_manifest(found):
            raise InvalidDescriptor(f"{where}: media type {found!r} is not that of a manifest")
        layers = _list(document, "layers", where, MAX_LAYERS)
        return cls(
            found,
            Descriptor.from_json(document.get("config"), where=f"{where}: config"),
            tuple(Descriptor.from_json(layer, where=f"{where}: layer {number}") for number, layer in enumerate(layers)),
            document,
        )

    @property
    def artifact_type(self) -> str:
        """What kind of artifact it is, by its ``artifactType`` or its config's type (image-spec, manifest.md)."""
        own = self.document.get("artifactType")
        return own if isinstance(own, str) and own else self.config.media_type

    @property
    def annotations(self) -> Mapping[str, str]:
        """Annotations of the manifest itself."""
        return _annotations(self.document)

    def replace(
        self,
        *,
        media_type: str | None = None,
        config: Descriptor | None = None,
        layers: Sequence[Descriptor] | None = None,
    ) -> Manifest:
        """The same manifest with these parts changed and everything else kept."""
        new = Manifest(
            media_type or self.media_type,
            config or self.config,
            self.layers if layers is None else tuple(layers),
            self.document,
        )
        document = {
            **self.document,
            "schemaVersion": 2,
            "mediaType": new.media_type,
            "config": new.config.to_json(),
            "layers": [layer.to_json() for layer in new.layers],
        }
        return Manifest(new.media_type, new.config, new.layers, _ordered(document))

    def to_bytes(self) -> bytes:
        """The document as compact JSON: for a manifest that was parsed and not replaced, not necessarily its original bytes."""
        return encode_document(self.document)


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests, usually one per platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    document: Mapping[str, Any] = field(repr=False, hash=False)

    @classmethod
    def parse(cls, data: bytes, *, where: str = "index", media_type: str | None = None) -> Index:
        """Raises InvalidDescriptor. ``media_type`` is what the descriptor said; the document must not say otherwise."""
        document = decode_document(data, where=where)
        if "layers" in document or "config" in document:
            raise InvalidDescriptor(f"{where}: has layers or a config beside its manifests")
        found = _media_type(document, media_type, media_types.OCI_INDEX, where)
        if not media_types.is_index(found):
            raise InvalidDescriptor(f"{where}: media type {found!r} is not that of an index")
        listed = _list(document, "manifests", where, MAX_MANIFESTS)
        return cls(
            found,
            tuple(Descriptor.from_json(item, where=f"{where}: manifest {number}") for number, item in enumerate(listed)),
            document,
        )

    @property
    def artifact_type(self) -> str:
        """What kind of artifact it is (image-spec, image-index.md); empty where it does not say."""
        own = self.document.get("artifactType")
        return own if isinstance(own, str) else ""

    @property
    def annotations(self) -> Mapping[str, str]:
        """Annotations of the index itself."""
        return _annotations(self.document)

    def replace(self, *, media_type: str | None = None, manifests: Sequence[Descriptor] | None = None) -> Index:
        """The same index with these parts changed and everything else kept."""
        kind = media_type or self.media_type
        kept = self.manifests if manifests is None else tuple(manifests)
        document = {**self.document, "schemaVersion": 2, "mediaType": kind, "manifests": [item.to_json() for item in kept]}
        return Index(kind, kept, _ordered(document))

    def to_bytes(self) -> bytes:
        """The document as compact JSON: for an index that was parsed and not replaced, not necessarily its original bytes."""
        return encode_document(self.document)


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration of an image: what it runs on, and the digest of each layer uncompressed, lowest first."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    document: Mapping[str, Any] = field(repr=False, hash=False)

    @classmethod
    def parse(cls, data: bytes, *, where: str = "config") -> Config:
        """Raises InvalidDescriptor."""
        document = decode_document(data, where=where)
        parts = [document.get(key, "") for key in ("os", "architecture", "variant")]
        if not all(isinstance(part, str) for part in parts):
            raise InvalidDescriptor(f"{where}: os, architecture or variant is no string")
        rootfs = document.get("rootfs")
        if not isinstance(rootfs, dict) or rootfs.get("type", "layers") != "layers":
            raise InvalidDescriptor(f"{where}: no rootfs of type 'layers'")
        listed = _list(rootfs, "diff_ids", f"{where}: rootfs", MAX_LAYERS)
        try:
            diff_ids = tuple(Digest.parse(item if isinstance(item, str) else repr(item)) for item in listed)
        except InvalidDigest as error:
            raise InvalidDescriptor(f"{where}: diff_ids: {error}") from error
        extra: dict[str, Any] = {key: document[key] for key in ("os.version", "os.features") if key in document}
        return cls(Platform(parts[0], parts[1], parts[2], extra), diff_ids, document)

    def replace(self, *, diff_ids: Sequence[Digest]) -> Config:
        """The same config with other DiffIDs; history and everything else kept."""
        rootfs = {**self.document["rootfs"], "type": "layers", "diff_ids": [str(item) for item in diff_ids]}
        return Config(self.platform, tuple(diff_ids), {**self.document, "rootfs": rootfs})

    def to_bytes(self) -> bytes:
        """The document as compact JSON: for a config that was parsed and not replaced, not necessarily its original bytes."""
        return encode_document(self.document)


def _media_type(document: Mapping[str, Any], said: str | None, default: str, where: str) -> str:
    """The document's own type where it has one (Docker's always do, OCI's may), else the descriptor's."""
    own = document.get("mediaType") or said or default
    if not isinstance(own, str):
        raise InvalidDescriptor(f"{where}: mediaType is no string")
    if document.get("schemaVersion", 2) != 2:
        raise InvalidDescriptor(f"{where}: schema version {document['schemaVersion']!r} is not supported, only 2 is")
    if said is not None and own != said:
        raise InvalidDescriptor(f"{where}: says it is {own!r}, its descriptor says {said!r}")
    return own


def _list(document: Mapping[str, Any], key: str, where: str, limit: int) -> list[Any]:
    value = document.get(key)
    if value is None and key in document:  # Go writes a nil slice as null
        value = []
    if not isinstance(value, list):
        raise InvalidDescriptor(f"{where}: no list {key!r}")
    if len(value) > limit:
        raise InvalidDescriptor(f"{where}: {len(value)} {key} are over the limit of {limit}")
    return value


def _annotations(document: Mapping[str, Any]) -> Mapping[str, str]:
    value = document.get("annotations")
    return {key: item for key, item in value.items() if isinstance(item, str)} if isinstance(value, dict) else {}


def _ordered(document: Mapping[str, Any]) -> dict[str, Any]:
    """Fields in the order that Go's image-spec writes them, whatever else there is behind."""
    known = ("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations")
    first = {key: document[key] for key in known if key in document}
    return {**first, **{key: item for key, item in document.items() if key not in first}}
