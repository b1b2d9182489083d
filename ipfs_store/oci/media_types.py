"""Media types of OCI (image-spec, media-types.md) and of Docker (distribution, "Image Manifest V 2, Schema 2"), and what they say."""

from __future__ import annotations

from typing import Literal

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

Compression = Literal["none", "gzip", "zstd"]

_OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"

_LAYERS: dict[str, Compression] = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    _OCI_NONDISTRIBUTABLE: "none",
    f"{_OCI_NONDISTRIBUTABLE}+gzip": "gzip",
    f"{_OCI_NONDISTRIBUTABLE}+zstd": "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    f"{DOCKER_LAYER}.zstd": "zstd",
    _DOCKER_FOREIGN: "none",
    f"{_DOCKER_FOREIGN}.gzip": "gzip",
}

_TO_OCI = {
    DOCKER_INDEX: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    f"{DOCKER_LAYER}.zstd": OCI_LAYER_ZSTD,
    _DOCKER_FOREIGN: _OCI_NONDISTRIBUTABLE,
    f"{_DOCKER_FOREIGN}.gzip": f"{_OCI_NONDISTRIBUTABLE}+gzip",
}


DOCKER_TYPES = frozenset(_TO_OCI)
"""All of Docker's: manifests of theirs have no annotations on layers by their specification, and no zstd."""


def is_index(media_type: str) -> bool:
    """Whether it lists manifests, one per platform."""
    return media_type in (OCI_INDEX, DOCKER_INDEX)


def is_manifest(media_type: str) -> bool:
    """Whether it is the manifest of one image."""
    return media_type in (OCI_MANIFEST, DOCKER_MANIFEST)


def is_config(media_type: str) -> bool:
    """Whether it is the configuration of a runnable image (an artifact has a type of its own)."""
    return media_type in (OCI_CONFIG, DOCKER_CONFIG)


def is_layer(media_type: str) -> bool:
    """Whether it is a tar of a file system layer, compressed or not. Anything else in ``layers`` is to be left as it is."""
    return media_type in _LAYERS


def is_nondistributable(media_type: str) -> bool:
    """Whether a layer is not kept by registries, but fetched from the URLs of its descriptor (Windows base layers)."""
    return media_type.startswith((_OCI_NONDISTRIBUTABLE, _DOCKER_FOREIGN))


def compression_of(media_type: str) -> Compression:
    """How a layer says that it is compressed; the blob itself may disagree. ValueError for what is no layer."""
    try:
        return _LAYERS[media_type]
    except KeyError:
        raise ValueError(f"{media_type} is not a layer") from None


def layer_type(compression: Compression) -> str:
    """The OCI media type of a layer compressed so."""
    return {"none": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}[compression]


def recompressed(media_type: str, compression: Compression) -> str:
    """The type of the same layer compressed otherwise, of the same family: a Docker manifest keeps Docker's types. ValueError for no layer."""
    compression_of(media_type)
    for family, mark in ((DOCKER_LAYER, "."), (_DOCKER_FOREIGN, "."), (OCI_LAYER, "+"), (_OCI_NONDISTRIBUTABLE, "+")):
        if media_type.startswith(family):
            found = family if compression == "none" else f"{family}{mark}{'gzip' if compression == 'gzip' else 'zstd'}"
            compression_of(found)
            return found
    raise ValueError(f"{media_type} is not a layer")


def to_oci(media_type: str) -> str:
    """The OCI counterpart of a Docker type; any other type unchanged."""
    return _TO_OCI.get(media_type, media_type)
